Code.require_file("../../test/support/elixir_alone.ex", __DIR__)

defmodule Integration.ElixirAloneTest do
  @moduledoc "An application with Ecto where neither Rust nor Node.js nor PostgreSQL is."
  use ExUnit.Case, async: false

  import Integration.Guide, only: [files: 1, mix!: 3, write!: 2]

  alias Integration.Guide
  alias PgliteEx.ElixirAlone

  @moduletag mode: :shared
  @moduletag :tmp_dir
  @moduletag timeout: 300_000

  @migration """
  defmodule MyApp.Repo.Migrations.CreateItems do
    use Ecto.Migration

    def change do
      execute "create extension vector", "drop extension vector"

      create table(:items) do
        add :name, :text, null: false
      end

      execute "alter table items add embedding vector(2)", ""
    end
  end
  """

  test "the program comes from an archive, and migrations, vectors and dumps work",
       %{tmp_dir: directory} do
    project = write!(Path.join(directory, "my_app"), files("ecto_in_five_minutes.md"))
    library = ElixirAlone.library!(Path.join(directory, "library/elixir"))
    # Compiled again, as the dependency of a project is.
    File.rm_rf!(Path.join(project, "_build/lib/pglite_ex"))
    mix_exs = Path.join(project, "mix.exs")
    here = Path.expand("../..", __DIR__)

    File.write!(
      mix_exs,
      mix_exs |> File.read!() |> String.replace(inspect(here), inspect(library))
    )

    migration = Path.join(project, "priv/repo/migrations/20260101000000_create_items.exs")
    File.mkdir_p!(Path.dirname(migration))
    File.write!(migration, @migration)

    environment = [
      {"PATH", ElixirAlone.tools!(Path.join(directory, "tools"))},
      {"PGLITE_EX_ARCHIVE", ElixirAlone.archive!(directory)},
      {"PGLITE_PORT", nil},
      {"PGLITE_DIR", nil}
    ]

    run = &mix!(project, &1, environment)
    assert run.(["compile"]) =~ "Unpacking pglite-port from"
    assert run.(["ecto.migrate"]) =~ "create table items"

    add =
      ~s|MyApp.Repo.query!("insert into items (name, embedding) values ('a', '[1,2]'), ('b', '[5,5]')")|

    nearest =
      ~s|MyApp.Repo.query!("select name from items order by embedding <-> '[4,4]' limit 1").rows|

    run.(["run", "-e", add])
    assert run.(["run", "-e", "IO.inspect(#{nearest})"]) =~ ~s([["b"]])

    run.(["ecto.dump"])
    structure = File.read!(Path.join(project, "priv/repo/structure.sql"))
    assert structure =~ "embedding public.vector(2)"
    assert run.(["ecto.drop", "--force"]) =~ "dropped"
    assert run.(["ecto.create"]) =~ "created"
    assert run.(["ecto.load", "--force", "--skip-if-loaded"]) =~ "loaded"
    assert run.(["run", "-e", "IO.inspect(#{nearest})"]) =~ "[]"
  end

  test "from mix new to a database, in the ten lines of README.md", %{tmp_dir: directory} do
    [_before, rest] =
      String.split(Guide.text("../README.md"), "### From `mix new` to a database, in ten lines\n")

    [section, _rest] = String.split(rest, "\n## ", parts: 2)
    {dependencies, files} = section |> Guide.files_in() |> Map.pop!("mix.exs")
    lines = files |> Map.values() |> Enum.join() |> String.split("\n")
    assert Enum.count(lines, &(String.trim(&1) != "")) == 10

    ElixirAlone.library!(Path.join(directory, "pglite_ex"))
    tools = ElixirAlone.tools!(Path.join(directory, "tools"))
    project = ElixirAlone.new_project!(directory, tools, dependencies(dependencies))
    take_packages!(project)
    # Another server may be at the port of the text.
    port = free_port()
    for {name, text} <- files, do: Guide.write!(project, name, String.replace(text, "5433", port))

    commands =
      for [command] <- Regex.scan(~r/^\$ (.+)$/m, section, capture: :all_but_first), do: command

    assert [
             "mix new my_app && cd my_app",
             "export PGLITE_EX_ARCHIVE=" <> _archive,
             "mix deps.get",
             migrate_and_dump,
             serve,
             path,
             psql
           ] = commands

    environment = [{"PATH", tools}, {"PGLITE_EX_ARCHIVE", ElixirAlone.archive!(directory)}]
    environment = [{"MIX_ENV", nil}, {"PGLITE_PORT", nil}, {"PGLITE_DIR", nil} | environment]
    run = &System.cmd("sh", ["-c", &1], cd: project, stderr_to_stdout: true, env: environment)
    at_port = &String.replace(&1, "pglite_ex.server", "pglite_ex.server --port #{port}")

    assert {output, 0} = run.(at_port.(migrate_and_dump))
    assert output =~ "Unpacking pglite-port from"
    assert output =~ "create table items"
    structure = File.read!(Path.join(project, "priv/repo/structure.sql"))
    assert structure =~ "embedding public.vector(2)"

    assert "mix " <> _server = serve = String.replace_suffix(serve, " &", "")
    server = serve!(at_port.(serve), project, environment)
    assert_receive {^server, {:data, "postgresql://postgres@127.0.0.1:" <> _rest}}, 60_000
    psql = path <> "\n" <> String.replace(psql, "5433", port)
    assert {_output, 0} = run.(psql)
    select = ~S(-Atc "select embedding <-> '[4,6]' from items")
    assert {"5\n", 0} = run.(String.replace(psql, ~r/-c ".*"/, select))
  end

  defp serve!(command, project, environment) do
    environment =
      for {name, value} <- environment,
          do: {to_charlist(name), if(value, do: to_charlist(value), else: false)}

    port =
      Port.open({:spawn_executable, "/bin/sh"}, [
        :binary,
        args: ["-c", "exec " <> command],
        cd: project,
        env: environment
      ])

    {:os_pid, os_pid} = Port.info(port, :os_pid)
    on_exit(fn -> System.cmd("kill", ["-KILL", "#{os_pid}"], stderr_to_stdout: true) end)
    port
  end

  defp free_port do
    {:ok, socket} = :gen_tcp.listen(0, ip: {127, 0, 0, 1})
    {:ok, port} = :inet.port(socket)
    :gen_tcp.close(socket)
    Integer.to_string(port)
  end

  # Those of the text, and what else their packages need where these come from `MIX_DEPS_PATH`.
  defp dependencies(text) do
    others =
      for dependency <- Guide.deps(),
          elem(dependency, 0) not in [:pglite_ex, :ecto_sql, :postgrex],
          do: inspect(dependency)

    Enum.join([String.trim_trailing(text) | others], ",\n")
  end

  # The project has the packages of this one, compiled ones included.
  defp take_packages!(project) do
    path = Path.join(project, "mix.exs")

    mix_exs =
      path
      |> File.read!()
      |> String.replace("deps: deps()", "deps: deps(), " <> Guide.same_packages())

    File.write!(path, Guide.offline_packages() <> mix_exs)
    Guide.copy_dependencies!(Path.join(project, "_build/dev"))
  end
end
