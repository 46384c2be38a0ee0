"""The subcommands of ``bellwether``."""
