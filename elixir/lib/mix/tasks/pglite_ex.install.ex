defmodule Mix.Tasks.PgliteEx.Install do
  @shortdoc "Puts pglite-port and PGlite's files in place"
  @moduledoc """
  Puts the program `pglite-port` and PGlite's files into `priv/` of this library.

      mix pglite_ex.install

  From an archive (`--archive`, or one that `PGLITE_EX_ARCHIVE` or the configuration names, see
  `Mix.Tasks.Compile.PglitePort`) it needs nothing else. Otherwise it needs a checkout of the project
  around the library, a Rust toolchain for the program and `npm` for PGlite's files, which come from
  the package that `pglite/package-lock.json` pins by hash.

  The extensions in packages beside PGlite (pgvector, Apache AGE, pgmq, …) come with it. What is
  there from an earlier time is replaced. What you have added stays: packages beside PGlite's in the checkout, such as
  that of PostGIS, and bundles of extensions (`*.tar.gz`) in `priv/pglite`.

  It also puts scripts named `pg_dump` and `psql` into `priv/bin`, which do with `pglite-port` what
  `mix ecto.dump` and `mix ecto.load` call these for. `mix pglite_ex.server NAME --and ecto.dump` finds
  them by itself; elsewhere put that directory into the `PATH`:

      PATH="$PWD/_build/dev/lib/pglite_ex/priv/bin:$PATH" mix ecto.dump

  ## Options

    * `--archive PLACE` – takes everything from this archive, a path or a URL
    * `--sha256 HEX` – the SHA-256 that the archive must have
    * `--program PATH` – takes this program instead of building one
    * `--pglite-dir PATH` – takes PGlite's files from this directory instead of installing them
    * `--no-extensions` – leaves out the extensions in packages beside PGlite
  """

  use Mix.Task

  alias PgliteEx.{Archive, Executable, Launchers, OwnBundles}

  @switches [
    archive: :string,
    sha256: :string,
    program: :string,
    pglite_dir: :string,
    extensions: :boolean
  ]
  @pglite_package "node_modules/@electric-sql/pglite/dist"
  # Relative to that.
  @bundles "../../pglite-*/dist/*.tar.gz"
  # PostgreSQL's client programs are in a package beside PGlite's.
  @tools_beside "../../pglite-tools/dist/pg_dump.wasm"

  @impl Mix.Task
  def run(arguments) do
    {options, rest} = OptionParser.parse!(arguments, strict: @switches)
    if rest != [], do: Mix.raise("mix pglite_ex.install does not take #{Enum.join(rest, " ")}")

    case archive(options) do
      nil ->
        install_program(options)
        install_pglite(options)
        Launchers.install!(Launchers.directory())
        Archive.forget()

      archive ->
        install_archive(archive)
    end

    say("pg_dump and psql are in #{Launchers.directory()}")
  end

  defp archive(options) do
    parts = Keyword.take(options, [:program, :pglite_dir, :extensions])

    cond do
      # Who says where a part comes from does not mean the archive that is configured.
      parts != [] and (options[:archive] || options[:sha256]) ->
        Mix.raise("an archive holds everything: leave out #{switches(parts)}")

      parts != [] ->
        nil

      true ->
        archive = Archive.named(options)
        if options[:sha256] && archive == nil, do: Mix.raise("--sha256 is for an --archive")
        archive
    end
  end

  defp switches(options) do
    Enum.map_join(options, " and ", fn
      {:extensions, false} -> "--no-extensions"
      {name, _value} -> "--" <> String.replace("#{name}", "_", "-")
    end)
  end

  defp install_archive(archive) do
    case Archive.install(archive) do
      {:ok, version} -> say("#{version} is in #{Executable.installed_path()}")
      {:error, sentence} -> Mix.raise(sentence)
    end
  end

  @doc false
  @spec build(Path.t(), Path.t()) :: {:ok | :error, [Mix.Task.Compiler.Diagnostic.t()]}
  def build(source, cargo) do
    command = ["build", "--release", "--bin", "pglite-port"]

    case run_command(cargo, command, source) do
      :ok ->
        split_debug_info(source)
        copy_program(Path.join(source, "target/release/pglite-port"))
        {:ok, []}

      {:failed, status} ->
        Mix.shell().error("cargo #{Enum.join(command, " ")} failed with status #{status}")
        {:error, []}
    end
  end

  # Five sixths of the program are debug information, which need not be shipped.
  defp split_debug_info(source) do
    script = Path.join(source, ".ci/split-debug-info")

    if File.exists?(script),
      do: run_command(script, ["target/release/pglite-port"], source)
  end

  defp install_program(options) do
    target = Executable.installed_path()
    source = Executable.checkout()

    cond do
      options[:program] ->
        copy_program(options[:program])

      source ->
        with {:error, _} <- build(source, tool!("cargo", "the Rust toolchain")),
             do: Mix.raise("pglite-port could not be built; cargo said why above")

      File.exists?(target) ->
        say("#{target} is there, and stays")

      true ->
        Mix.raise(no_source(target))
    end
  end

  defp install_pglite(options) do
    target = Executable.pglite_path()
    extensions? = Keyword.get(options, :extensions, true)

    cond do
      options[:pglite_dir] -> copy_pglite(options[:pglite_dir], target, extensions?)
      Executable.checkout() -> copy_pglite(install_package(extensions?), target, extensions?)
      Executable.installed_pglite_dir() -> say("#{target} is there, and stays")
      true -> Mix.raise(no_package_lock(target))
    end
  end

  defp install_package(extensions?) do
    directory = Path.join(Executable.checkout(), "pglite")
    say("Installing PGlite's files with npm ci")

    command = if extensions?, do: ["ci"], else: ["ci", "--omit=optional"]

    npm = tool!("npm", "Node.js")

    case keeping_packages(directory, fn -> run_command(npm, command, directory) end) do
      :ok -> Path.join(directory, @pglite_package)
      {:failed, status} -> Mix.raise("npm ci in #{directory} failed with status #{status}")
    end
  end

  # `npm ci` removes what its lock does not name: packages that the user has installed besides, such as PostGIS.
  defp keeping_packages(directory, fun) do
    packages = Path.join(directory, "node_modules/@electric-sql")
    aside = Path.join(directory, ".kept.#{System.pid()}")
    lock = File.read!(Path.join(directory, "package-lock.json"))

    {:ok, there} = with {:error, _none} <- File.ls(packages), do: {:ok, []}

    names =
      for "pglite-" <> _rest = name <- there,
          not String.contains?(lock, ~s("node_modules/@electric-sql/#{name}")),
          do: name

    move = fn from, to ->
      File.mkdir_p!(to)
      for name <- names, do: File.rename!(Path.join(from, name), Path.join(to, name))
    end

    if names != [], do: move.(packages, aside)

    try do
      fun.()
    after
      if names != [] do
        move.(aside, packages)
        File.rmdir!(aside)
      end
    end
  end

  # Copied whole and renamed, so that a task that is killed leaves nothing half done.
  defp copy_pglite(source, target, extensions?) do
    unless File.regular?(Path.join(source, "pglite.wasm")) do
      Mix.raise("#{source} holds no pglite.wasm; --pglite-dir takes the dist directory of PGlite")
    end

    File.mkdir_p!(Path.dirname(target))
    beside = "#{target}.#{System.pid()}"
    File.cp_r!(source, beside)
    # The program finds the bundles of other packages among PGlite's files.
    bundles = if extensions?, do: Path.wildcard(Path.join(source, @bundles)), else: []
    for bundle <- bundles, do: File.cp!(bundle, Path.join(beside, Path.basename(bundle)))
    tool = Path.join(source, @tools_beside)
    if File.regular?(tool), do: File.cp!(tool, Path.join(beside, Path.basename(tool)))
    OwnBundles.note!(beside)
    OwnBundles.keep!(target, beside)
    File.rm_rf!(target)
    File.rename!(beside, target)
    say("PGlite's files are in #{target}")
  end

  defp copy_program(source) do
    target = Executable.installed_path()
    File.mkdir_p!(Path.dirname(target))
    beside = "#{target}.#{System.pid()}"
    File.cp!(source, beside)
    # Renamed, because a program that runs cannot be overwritten.
    File.rename!(beside, target)
    say("pglite-port is in #{target}")
  end

  defp no_source(target) do
    "pglite-port cannot be built for #{target}: #{Executable.checkout_path()} is no checkout of " <>
      "the project. Name an archive with --archive, or a program that is built already with " <>
      "--program PATH."
  end

  defp no_package_lock(target) do
    "PGlite's files cannot be installed in #{target}: #{Executable.checkout_path()} is no " <>
      "checkout of the project, whose pglite/package-lock.json says which they are. Name the dist " <>
      "directory of the npm package @electric-sql/pglite with --pglite-dir PATH."
  end

  defp tool!(name, package) do
    System.find_executable(name) ||
      Mix.raise("#{name} is not in the PATH; install #{package} and run this again")
  end

  defp run_command(command, arguments, directory) do
    case System.cmd(command, arguments,
           cd: directory,
           into: IO.stream(),
           stderr_to_stdout: true
         ) do
      {_output, 0} -> :ok
      {_output, status} -> {:failed, status}
    end
  end

  defp say(text), do: Mix.shell().info(text)
end
