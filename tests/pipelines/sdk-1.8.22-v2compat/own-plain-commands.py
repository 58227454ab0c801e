"""v2-compatible mode with plain commands: parameters of each type, a file, a directory, and artifacts by URI (kfp 1.8.22)."""
from kfp import components, dsl

make = components.load_component_from_text("""
name: Make
inputs:
- {name: rows, type: Integer}
- {name: scale, type: Float}
- {name: label, type: String}
outputs:
- {name: total, type: Integer}
- {name: mean, type: Float}
- {name: table, type: Dataset}
- {name: folder, type: Dataset}
implementation:
  container:
    image: python:3.9
    command:
    - sh
    - -ec
    - |
      seq "$0" > "$3"
      mkdir -p "$4/inner"
      echo "$2" > "$4/label"
      echo deep > "$4/inner/file"
      echo "$0" > "$5"
      echo "$1" > "$6"
    - {inputValue: rows}
    - {inputValue: scale}
    - {inputValue: label}
    - {outputPath: table}
    - {outputPath: folder}
    - {outputPath: total}
    - {outputPath: mean}
""")

sum_up = components.load_component_from_text("""
name: Sum up
inputs:
- {name: table, type: Dataset}
- {name: folder, type: Dataset}
- {name: total, type: Integer}
outputs:
- {name: said, type: String}
- {name: model, type: Model}
implementation:
  container:
    image: python:3.9
    command:
    - python3
    - -c
    - |
      import json, pathlib, sys
      table, folder, total, uri, model = sys.argv[1:]
      words = [pathlib.Path(folder, name).read_text().strip() for name in ("label", "inner/file")]
      said = "%d rows of %s: %s" % (len(open(table).readlines()), total, ", ".join(words))
      pathlib.Path(model).write_text("from " + uri.rsplit("/", 2)[1] + "\\n")
      pathlib.Path("/tmp/kfp_outputs/output_metadata.json").write_text(json.dumps({
          "parameters": {"said": {"stringValue": said}},
          "artifacts": {"model": {"artifacts": [{"metadata": {"rows": int(total)}}]}},
      }))
    - {inputPath: table}
    - {inputPath: folder}
    - {inputValue: total}
    - {inputUri: table}
    - {outputPath: model}
""")

tell = components.load_component_from_text("""
name: Tell
inputs:
- {name: said, type: String}
- {name: model, type: Model}
outputs:
- {name: text, type: String}
implementation:
  container:
    image: python:3.9
    command: [sh, -ec, 'echo "$0" > "$2"; cat "$1" >> "$2"', {inputValue: said}, {inputPath: model}, {outputPath: text}]
""")


@dsl.pipeline(name='own-plain-commands')
def plain_commands(rows: int = 7, label: str = 'a "quoted" $word'):
    made = make(rows=rows, scale=0.00001, label=label)
    summed = sum_up(table=made.outputs['table'], folder=made.outputs['folder'], total=made.outputs['total'])
    tell(said=summed.outputs['said'], model=summed.outputs['model'])


if __name__ == '__main__':
    from kfp.compiler import Compiler

    Compiler(mode=dsl.PipelineExecutionMode.V2_COMPATIBLE).compile(
        plain_commands, __file__.replace('.py', '.yaml'))
