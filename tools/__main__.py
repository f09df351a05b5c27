"""`python -m tools`: rewrites every file that is made from code (`make generate`)."""

from __future__ import annotations

from tools import deepspeed_keys, model_table, reference, study_schema


def main() -> None:
    """Run every generator; the pages last, since they show what the others wrote."""
    for generator in (deepspeed_keys, model_table, study_schema, reference):
        generator.write()
        print(f"{generator.__name__}: written")


if __name__ == "__main__":
    main()
