{:ok, _started} = Application.ensure_all_started(:postgrex)
{:ok, _started} = Application.ensure_all_started(:ecto_sql)

# What needs the tests of one mode can be left out with --exclude mode:shared.
ExUnit.start(capture_log: true)
