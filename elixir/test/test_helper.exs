{:ok, _program} = PgliteEx.Executable.find()
{:module, :telemetry} = Code.ensure_loaded(:telemetry)

ExUnit.start(capture_log: true)
