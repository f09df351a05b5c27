"""The only home of torch: one rank of one round. Started by `launch` by module name, imported by nobody."""
