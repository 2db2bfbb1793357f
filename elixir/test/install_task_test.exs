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
    [dist, beside] = with_a_package_beside!(directory)
    arguments = ["--program", program, "--pglite-dir", dist]
    assert {_output, 0} = install(library, arguments)
    bundle = Path.join(library, "_build/prod/lib/pglite_ex/priv/pglite/x.tar.gz")
    assert File.read!(bundle) == "x"
    assert {_output, 0} = install(library, ["--no-extensions" | arguments])
    refute File.exists?(bundle)
    assert File.exists?(Path.join(Path.dirname(bundle), "pglite.wasm"))
  end

  test "bundles that were put among PGlite's files stay, and those that came with them do not",
       %{library: library, program: program, tmp_dir: directory} do
    [dist, beside] = with_a_package_beside!(directory)
    arguments = ["--program", program, "--pglite-dir", dist]
    assert {_output, 0} = install(library, arguments)
    pglite = Path.join(library, "_build/prod/lib/pglite_ex/priv/pglite")
    File.write!(Path.join(pglite, "own.tar.gz"), "own")
    File.rm!(Path.join(beside, "x.tar.gz"))
    File.write!(Path.join(beside, "y.tar.gz"), "y")

    for _again <- 1..2 do
      assert {_output, 0} = install(library, arguments)
      bundles = pglite |> Path.join("*.tar.gz") |> Path.wildcard() |> Enum.map(&Path.basename/1)
      assert bundles == ["own.tar.gz", "y.tar.gz"]
    end

    # A package that has it now is preferred.
    File.write!(Path.join(beside, "own.tar.gz"), "newer")
    assert {_output, 0} = install(library, arguments)
    assert File.read!(Path.join(pglite, "own.tar.gz")) == "newer"
  end

  test "packages that were installed beside PGlite's stay, also when npm fails",
       %{library: library, program: program, tmp_dir: directory} do
    # As a checkout, with an npm that removes what the lock does not name.
    File.write!(Path.join(directory, "Cargo.toml"), "")
    packages = Path.join(directory, "pglite/node_modules/@electric-sql")
    lock = ~s({"packages": {"node_modules/@electric-sql/pglite-x": {}}})

    for {path, content} <- [
          {"pglite-postgis/dist/postgis.tar.gz", "postgis"},
          {"pglite-x/dist/x.tar.gz", "older"},
          {"../../package-lock.json", lock}
        ] do
      path = Path.expand(path, packages)
      File.mkdir_p!(Path.dirname(path))
      File.write!(path, content)
    end

    npm = Path.join(directory, "bin/npm")
    File.mkdir_p!(Path.dirname(npm))

    File.write!(npm, """
    #!/bin/sh
    rm -r node_modules
    mkdir -p node_modules/@electric-sql/pglite/dist node_modules/@electric-sql/pglite-x/dist
    echo > node_modules/@electric-sql/pglite/dist/pglite.wasm
    printf newer > node_modules/@electric-sql/pglite-x/dist/x.tar.gz
    exit ${NPM_FAILS:-0}
    """)

    File.chmod!(npm, 0o755)
    path = Path.dirname(npm) <> ":" <> System.get_env("PATH")
    # With a program, the compilation does not build one.
    environment = %{"PATH" => path, "PGLITE_PORT" => program}
    arguments = ["--program", program]
    assert {output, 1} = install(library, arguments, Map.put(environment, "NPM_FAILS", "1"))
    assert output =~ "npm ci in #{directory}/pglite failed with status 1"
    assert File.read!(Path.join(packages, "pglite-postgis/dist/postgis.tar.gz")) == "postgis"

    assert {_output, 0} = install(library, arguments, environment)
    pglite = Path.join(library, "_build/prod/lib/pglite_ex/priv/pglite")
    assert File.read!(Path.join(pglite, "postgis.tar.gz")) == "postgis"
    assert File.read!(Path.join(pglite, "x.tar.gz")) == "newer"

    assert File.ls!(Path.join(directory, "pglite")) |> Enum.sort() == [
             "node_modules",
             "package-lock.json"
           ]
  end

  # PGlite's files, and those of a package with a bundle beside them.
  defp with_a_package_beside!(directory) do
    [dist, beside] =
      for name <- ["pglite", "pglite-x"], do: Path.join([directory, "n", name, "dist"])

    Enum.each([dist, beside], &File.mkdir_p!/1)
    File.write!(Path.join(dist, "pglite.wasm"), "")
    File.write!(Path.join(beside, "x.tar.gz"), "x")
    [dist, beside]
  end

  defp install(library, arguments, environment \\ %{}) do
    System.cmd("mix", ["pglite_ex.install" | arguments],
      cd: library,
      env: Map.merge(%{"MIX_ENV" => "prod", "PGLITE_PORT" => nil}, environment),
      stderr_to_stdout: true
    )
  end
end
