defmodule PgliteEx.HexPackageTest do
  @moduledoc "The package for Hex, as an application on a machine with Elixir alone uses it."
  use ExUnit.Case, async: true

  alias PgliteEx.ElixirAlone

  @moduletag :tmp_dir
  @moduletag timeout: 300_000

  # Hex is an archive of Mix; nothing here needs a network.
  unless Code.ensure_loaded?(Mix.Tasks.Hex.Build) do
    why = "Hex is not installed: mix local.hex, or MIX_ARCHIVES with a directory in which it is"
    if System.get_env("PGLITE_EX_TEST_ALL", "") != "", do: raise(why)
    IO.puts(:stderr, "The package for Hex is not tested: #{why}.")
    @moduletag skip: why
  end

  test "it compiles, takes the archive that its list knows and no other one, and has a database",
       %{tmp_dir: directory} do
    archive = ElixirAlone.archive!(directory)
    {package, size: size, metadata: metadata} = ElixirAlone.package!(directory, archive)
    assert size < 1_000_000
    assert metadata =~ ~s({<<"name">>,<<"pglite_ex">>})
    refute File.exists?(Path.join(package, "priv"))
    refute File.exists?(Path.join(package, "test"))
    # The list is the only one that knows the archive.
    File.rm!(archive <> ".sha256")

    tools = ElixirAlone.tools!(Path.join(directory, "tools"))
    dependencies = "{:pglite_ex, path: #{inspect(package)}}"
    project = ElixirAlone.new_project!(directory, tools, dependencies)

    mix = fn arguments, environment ->
      System.cmd("mix", arguments,
        cd: project,
        stderr_to_stdout: true,
        env:
          [{"PATH", tools}, {"PWD", project}, {"MIX_ENV", "dev"}] ++
            [{"PGLITE_PORT", nil}, {"PGLITE_DIR", nil}] ++ environment
      )
    end

    other = Path.join(directory, "other/pglite-port-0.1.0-elsewhere.tar.gz")
    File.mkdir_p!(Path.dirname(other))
    File.cp!(archive, other)
    assert {output, 1} = mix.(["compile"], [{"PGLITE_EX_ARCHIVE", other}])
    assert output =~ "is none of the archives of this version (#{Path.basename(archive)})"

    damaged = Path.join(directory, "damaged/" <> Path.basename(archive))
    File.mkdir_p!(Path.dirname(damaged))
    File.write!(damaged, [File.read!(archive), "x"])
    assert {output, 1} = mix.(["compile"], [{"PGLITE_EX_ARCHIVE", damaged}])
    assert output =~ "is not the archive that was expected"

    assert {output, 0} = mix.(["compile"], [{"PGLITE_EX_ARCHIVE", archive}])
    assert output =~ "Unpacking pglite-port from #{archive}"

    script = """
    {:ok, server} = PgliteEx.start_link(database: "my_app")
    {:ok, stats} = PgliteEx.stats(server)
    IO.inspect(stats["ready"], label: "ready")
    """

    File.write!(Path.join(project, "script.exs"), script)
    assert {output, 0} = mix.(["run", "script.exs"], [])
    assert output =~ "ready: 1"
  end
end
