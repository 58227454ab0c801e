"""v2-compatible mode with function components, which install the SDK that runs them before anything else (kfp 1.8.22)."""
from kfp import dsl
from kfp.v2.dsl import Dataset, Input, Model, Output, OutputPath, component


@component
def make(rows: int, scale: float, weights: list, table: Output[Dataset], total: OutputPath(float)):
    table.metadata['rows'] = rows
    with open(table.path, 'w') as file:
        file.write('\n'.join(str(scale * weight) for weight in weights * rows))
    with open(total, 'w') as file:
        file.write(str(scale * sum(weights) * rows))


@component
def use(total: float, table: Input[Dataset], model: Output[Model]) -> str:
    with open(table.path) as file:
        lines = file.read().split('\n')
    with open(model.path, 'w') as file:
        file.write(table.uri)
    return f'{sum(map(float, lines))} of {total} in {table.metadata["rows"]} rows'


@dsl.pipeline(name='own-function-components')
def function_components(rows: int = 3):
    made = make(rows=rows, scale=0.5, weights=[1, 2])
    use(total=made.outputs['total'], table=made.outputs['table'])


if __name__ == '__main__':
    from kfp.compiler import Compiler

    Compiler(mode=dsl.PipelineExecutionMode.V2_COMPATIBLE).compile(
        function_components, __file__.replace('.py', '.yaml'))
