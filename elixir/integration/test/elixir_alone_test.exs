Code.require_file("../../test/support/elixir_alone.ex", __DIR__)

defmodule Integration.ElixirAloneTest do
  @moduledoc "An application with Ecto where neither Rust nor Node.js nor PostgreSQL is."
  use ExUnit.Case, async: false

  import Integration.Guide, only: [files: 1, mix!: 3, write!: 2]

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
end
