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

  @doc "Copies the library to a directory."
  @spec library!(Path.t()) :: Path.t()
  def library!(directory) do
    File.mkdir_p!(Path.join(directory, "priv"))

    for name <- ["lib", "mix.exs", "README.md"],
        do: File.cp_r!(Path.join(@library, name), Path.join(directory, name))

    directory
  end

  @doc """
  Makes an archive as `make dist` does, with its SHA-256 beside it. Its program is a script that runs the one
  under test, because packing that takes long.
  """
  @spec archive!(Path.t()) :: Path.t()
  def archive!(directory) do
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
    File.write!(program, "#!/bin/sh\nexec '#{System.fetch_env!("PGLITE_PORT")}' \"$@\"\n")
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
