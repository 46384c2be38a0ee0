"""The subcommands of ``bellwether``, one module each: ``add(commands)`` declares the arguments, ``run(arguments)`` acts."""
