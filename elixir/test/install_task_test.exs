defmodule PgliteEx.InstallTaskTest do
  @moduledoc "`mix pglite_ex.install` in a copy of the library, which has no checkout around it."
  use ExUnit.Case, async: true

  alias PgliteEx.{BadProgram, ElixirAlone}

  @moduletag :tmp_dir

  setup %{tmp_dir: directory} do
    library = ElixirAlone.library!(Path.join(directory, "elixir"))
    %{library: library, program: BadProgram.write!(directory, "exit 0")}
  end

  test "what cannot be made is named, with where it was looked for and the option that gives it",
       %{library: library, program: program, tmp_dir: directory} do
    assert {output, 1} = install(library, [])
    assert output =~ "pglite-port cannot be built"
    assert output =~ "#{directory} is no checkout"
    assert output =~ "--program PATH"
    refute output =~ "--pglite-dir"

    assert {output, 1} = install(library, ["--program", program])
    assert output =~ "pglite-port is in #{library}"
    assert output =~ "PGlite's files cannot be installed"
    assert output =~ "#{directory} is no checkout"
    assert output =~ "--pglite-dir PATH"
    refute output =~ "--program"

    dist = Path.join(directory, "dist")
    File.mkdir_p!(dist)
    File.write!(Path.join(dist, "pglite.wasm"), "")
    assert {output, 0} = install(library, ["--pglite-dir", dist])
    assert output =~ "PGlite's files are in #{library}"

    for name <- ["pg_dump", "psql"] do
      assert File.stat!(Path.join([library, "priv", "bin", name])).mode |> Bitwise.band(0o111) !=
               0
    end
  end

  test "the bundles of packages beside PGlite come with it, or are left out",
       %{library: library, program: program, tmp_dir: directory} do
    [dist, beside] =
      for name <- ["pglite", "pglite-x"], do: Path.join([directory, "n", name, "dist"])

    Enum.each([dist, beside], &File.mkdir_p!/1)
    File.write!(Path.join(dist, "pglite.wasm"), "")
    File.write!(Path.join(beside, "x.tar.gz"), "x")
    arguments = ["--program", program, "--pglite-dir", dist]
    assert {_output, 0} = install(library, arguments)
    bundle = Path.join(library, "_build/prod/lib/pglite_ex/priv/pglite/x.tar.gz")
    assert File.read!(bundle) == "x"
    assert {_output, 0} = install(library, ["--no-extensions" | arguments])
    refute File.exists?(bundle)
    assert File.exists?(Path.join(Path.dirname(bundle), "pglite.wasm"))
  end

  defp install(library, arguments) do
    System.cmd("mix", ["pglite_ex.install" | arguments],
      cd: library,
      env: [{"MIX_ENV", "prod"}, {"PGLITE_PORT", nil}],
      stderr_to_stdout: true
    )
  end
end
