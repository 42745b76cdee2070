"""Types of ml_collections.config_flags for pyright."""

from typing import Any

def DEFINE_config_file(name: str, *args: Any, **kwargs: Any) -> Any: ...
