-- A run may have the name that the workflow of a deleted one had, and waits until that is erased.
create index erasures_workflow_name_idx on erasures (workflow_name);
