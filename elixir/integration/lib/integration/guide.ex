defmodule Integration.Guide do
  @moduledoc "Takes the code out of a guide, and makes a Mix project of it."

  @guides Path.expand("../../../guides", __DIR__)

  @doc "The blocks of Elixir in a guide that begin with the name of a file, by that name."
  def files(guide), do: guide |> text() |> files_in()

  @doc "The same in a text."
  def files_in(text) do
    blocks = Regex.scan(~r/^```elixir\n# (\S+)\n(.*?)^```/ms, text, capture: :all_but_first)
    Map.new(blocks, fn [name, code] -> {name, code} end)
  end

  @doc "The text of a guide."
  def text(guide), do: File.read!(Path.join(@guides, guide))

  @migration """
  defmodule MyApp.CreateNotes do
    use Ecto.Migration

    def change do
      create table(:notes) do
        add :text, :text
      end
    end
  end
  """

  @doc """
  Makes the application `my_app` in this VM, with a `priv` of its own, a migration with the table `notes` and `modules`,
  whose errors name the file `guide`. Returns what removes it.
  """
  def load_application!(guide, migrations, modules) do
    application =
      Path.join(System.tmp_dir!(), "my_app-#{System.unique_integer([:positive])}/my_app")

    migrations = Map.put(migrations, "20260101000000_create_notes.exs", @migration)
    for {name, code} <- migrations, do: write!(application, "priv/repo/migrations/" <> name, code)
    ebin = Path.join(application, "ebin")
    File.mkdir_p!(ebin)
    Code.prepend_path(ebin)
    :ok = :application.load({:application, :my_app, [vsn: ~c"1", modules: []]})
    # At once, because they call each other.
    modules |> Enum.join("\n") |> Code.compile_string(guide)

    fn ->
      Application.unload(:my_app)
      Code.delete_path(ebin)
      File.rm_rf!(Path.dirname(application))
    end
  end

  @doc "Copies the compiled dependencies of the project that calls this, but for the library itself."
  def copy_dependencies!(build) do
    for library <- File.ls!(Path.join(Mix.Project.build_path(), "lib")),
        library not in ["integration", "pglite_ex"],
        do: copy!(library, build)
  end

  defp copy!(library, build) do
    copy = Path.join([build, "lib", library])
    File.mkdir_p!(Path.dirname(copy))
    File.cp_r!(Path.join([Mix.Project.build_path(), "lib", library]), copy)
  end

  @doc """
  Writes the project `my_app`, with the part of `mix.exs` that a guide has, into an empty directory.

  Its dependencies, compiled ones included, are those of the project that calls this.
  """
  def write!(directory, files) do
    {mix_exs, files} = Map.pop!(files, "mix.exs")

    for {name, text} <- Map.put(files, "mix.exs", project(mix_exs)),
        do: write!(directory, name, text)

    build = Path.join(directory, "_build")
    copy_dependencies!(build)
    copy!("pglite_ex", build)
    directory
  end

  @doc "Writes a file below a directory."
  def write!(directory, name, text) do
    path = Path.join(directory, name)
    File.mkdir_p!(Path.dirname(path))
    File.write!(path, text)
  end

  @doc "What a `mix.exs` begins with, so that packages can come from `MIX_DEPS_PATH`."
  def offline_packages,
    do: "Code.require_file(#{inspect(Path.expand("../../offline_packages.exs", __DIR__))})\n"

  @doc "The part of a project's options by which it has the packages of the project that calls this."
  def same_packages do
    lockfile = Path.expand(Mix.Project.config()[:lockfile])
    "deps_path: #{inspect(Mix.Project.deps_path())}, lockfile: #{inspect(lockfile)}"
  end

  defp project(part) do
    """
    #{offline_packages()}

    defmodule MyApp.MixProject do
      use Mix.Project

      def project do
        [
          app: :my_app,
          version: "0.1.0",
          elixirc_paths: elixirc_paths(Mix.env()),
          aliases: aliases(),
          #{same_packages()},
          deps: #{inspect(deps(), limit: :infinity)}
        ]
      end

      def application, do: [extra_applications: [:logger], mod: {MyApp.Application, []}]

      defp elixirc_paths(:test), do: ["lib", "test/support"]
      defp elixirc_paths(_env), do: ["lib"]

    #{part}
    end
    """
  end

  @doc "The dependencies of the project that calls this, as another one names them."
  def deps do
    for dependency <- Mix.Project.config()[:deps] do
      case dependency do
        {:pglite_ex, path: path} -> {:pglite_ex, path: Path.expand(path)}
        dependency -> dependency
      end
    end
  end

  @doc "Runs Mix in a project, and returns its output, or fails."
  def mix!(directory, arguments, environment \\ []) do
    case mix(directory, arguments, environment) do
      {output, 0} ->
        output

      {output, status} ->
        raise "mix #{Enum.join(arguments, " ")} ended with #{status}:\n#{output}"
    end
  end

  @doc "Runs Mix in a project; returns its output and its status."
  def mix(directory, arguments, environment \\ []) do
    own = [{"MIX_BUILD_PATH", Path.join(directory, "_build")}, {"MIX_ENV", nil}]
    System.cmd("mix", arguments, cd: directory, stderr_to_stdout: true, env: own ++ environment)
  end
end
