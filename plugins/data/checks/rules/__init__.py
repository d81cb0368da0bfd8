"""The built-in rules, one idea a module; `tunery.plugins.data.checks.CHECKS` lists them without importing them."""
