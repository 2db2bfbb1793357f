defmodule PgliteEx.ElixirAlone do
  @moduledoc """
  A machine with Elixir, and with neither Rust nor Node.js nor PostgreSQL, for tests: what is in its
  `PATH`, the library without a checkout around it, and an archive with the program.
  """

  @others ~w(cargo rustc rustup node npm npx postgres psql pg_dump)
  @library Path.expand("../..", __DIR__)

  @doc "Fills a directory with what is in the `PATH`, but for those programs."
  @spec tools!(Path.t()) :: Path.t()
  def tools!(directory) do
    File.mkdir_p!(directory)

    # What comes first in the PATH comes last here, and stays.
    for place <- System.get_env("PATH") |> String.split(":") |> Enum.reverse(),
        {:ok, names} <- [File.ls(place)],
        name <- names -- @others do
      link = Path.join(directory, name)
      _ = File.rm(link)
      File.ln_s!(Path.join(place, name), link)
    end

    directory
  end

  @doc """
  Makes the project `my_app` in a directory by `mix new`, with that `PATH` and these lines as its dependencies.
  """
  @spec new_project!(Path.t(), Path.t(), String.t()) :: Path.t()
  def new_project!(directory, tools, dependencies) do
    {_output, 0} =
      System.cmd("mix", ["new", "my_app"],
        cd: directory,
        stderr_to_stdout: true,
        env: [{"PATH", tools}]
      )

    project = Path.join(directory, "my_app")
    mix_exs = Path.join(project, "mix.exs")
    [before, rest] = mix_exs |> File.read!() |> String.split("defp deps do\n    [\n")
    [_examples, rest] = String.split(rest, "\n    ]\n", parts: 2)
    File.write!(mix_exs, [before, "defp deps do\n    [\n", dependencies, "\n    ]\n", rest])
    project
  end

  # Made with the package: see .ci/hex.
  @list "archives.sha256"

  @doc "Copies the library to a directory: the files of its package, without the list of archives."
  @spec library!(Path.t()) :: Path.t()
  def library!(directory) do
    File.mkdir_p!(Path.join(directory, "priv"))

    for name <- package_files(), name != @list do
      true = File.exists?(Path.join(@library, name))
      File.cp_r!(Path.join(@library, name), Path.join(directory, name))
    end

    directory
  end

  # Those in its `mix.exs`, also when tests of another project run.
  defp package_files do
    config =
      if Mix.Project.config()[:app] == :pglite_ex,
        do: Mix.Project.config(),
        else:
          Mix.Project.in_project(:pglite_ex, @library, fn _project -> Mix.Project.config() end)

    config[:package][:files]
  end

  @doc """
  Makes the package for Hex, with the archive's checksum in its list, and unpacks it: its files, and the
  metadata.
  """
  @spec package!(Path.t(), Path.t()) :: {Path.t(), keyword}
  def package!(directory, archive) do
    source = library!(Path.join(directory, "source"))
    File.cp!(archive <> ".sha256", Path.join(source, @list))
    package = Path.join(directory, "pglite_ex.tar")
    # Hex would look for a newer one of itself, and wait where there is no network.
    environment = [
      {"MIX_ENV", "dev"},
      {"HEX_OFFLINE", "1"},
      {"HEX_HOME", Path.join(directory, "hex")}
    ]

    {_output, 0} =
      System.cmd("mix", ["hex.build", "--output", package],
        cd: source,
        env: environment,
        stderr_to_stdout: true
      )

    {:ok, parts} = :erl_tar.extract(to_charlist(package), [:memory])
    parts = Map.new(parts)
    unpacked = Path.join(directory, "deps/pglite_ex")
    File.mkdir_p!(unpacked)

    :ok =
      :erl_tar.extract({:binary, parts['contents.tar.gz']}, [
        :compressed,
        cwd: to_charlist(unpacked)
      ])

    {unpacked, size: File.stat!(package).size, metadata: parts['metadata.config']}
  end

  @doc """
  Puts an archive into the directory, with its SHA-256 beside it: the one of `make dist` that
  `PGLITE_EX_TEST_ARCHIVE` names (`make test-dist`), or else one that is made like it. Its program is a
  script that runs the one under test, because packing that takes long, with the files beside the script.
  """
  @spec archive!(Path.t()) :: Path.t()
  def archive!(directory) do
    case System.get_env("PGLITE_EX_TEST_ARCHIVE", "") do
      "" -> make_archive!(directory)
      archive -> copy_archive!(Path.expand(archive), directory)
    end
  end

  defp copy_archive!(archive, directory) do
    copy = Path.join(directory, Path.basename(archive))
    for suffix <- ["", ".sha256"], do: File.cp!(archive <> suffix, copy <> suffix)
    copy
  end

  defp make_archive!(directory) do
    root = Path.join(directory, "contents/pglite-port-0.1.0-here")
    dist = System.fetch_env!("PGLITE_DIR")
    packages = Path.join(dist, "../..")
    File.mkdir_p!(Path.join(root, "pglite"))

    for file <-
          Path.wildcard(Path.join(dist, "*.{wasm,data,tar.gz}")) ++
            [Path.join(dist, "pglite.js")] ++
            Path.wildcard(Path.join(packages, "pglite-pgvector/dist/*.tar.gz")) ++
            Path.wildcard(Path.join(packages, "pglite-tools/dist/pg_dump.wasm")),
        do: File.cp!(file, Path.join([root, "pglite", Path.basename(file)]))

    program = Path.join(root, "pglite-port")

    File.write!(program, """
    #!/bin/sh
    export PGLITE_DIR="${PGLITE_DIR:-${0%/*}/pglite}"
    exec '#{System.fetch_env!("PGLITE_PORT")}' "$@"
    """)

    File.chmod!(program, 0o755)
    pack!(root, Path.join(directory, "pglite-port-0.1.0-here.tar.gz"))
  end

  @doc "Packs a directory into the archive `path`, and writes its SHA-256 beside it."
  @spec pack!(Path.t(), Path.t()) :: Path.t()
  def pack!(root, path) do
    name = to_charlist(Path.basename(root))
    :ok = :erl_tar.create(to_charlist(path), [{name, to_charlist(root)}], [:compressed])
    File.write!(path <> ".sha256", sha256(path) <> "  #{Path.basename(path)}\n")
    path
  end

  @doc "The SHA-256 of a file."
  @spec sha256(Path.t()) :: String.t()
  def sha256(path),
    do: :sha256 |> :crypto.hash(File.read!(path)) |> Base.encode16(case: :lower)
end
