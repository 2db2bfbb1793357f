Code.require_file("support/ecto_storage.exs", __DIR__)

defmodule Integration.EctoStorageTest do
  @moduledoc "What Ecto's adapter does with databases and structures, with the launchers of `mix pglite_ex.install`."
  use ExUnit.Case, async: false

  alias Ecto.Adapters.Postgres
  alias Integration.EctoStorage

  @moduletag mode: :shared
  @moduletag :tmp_dir
  @moduletag :capture_log
  @moduletag timeout: 300_000

  setup_all do
    [url: EctoStorage.start!()]
  end

  # The configuration of a repo whose database is not there.
  setup %{url: url} do
    database = "storage_#{System.unique_integer([:positive])}"
    [config: [database: database, log: false] ++ Ecto.Repo.Supervisor.parse_url(url <> "/x")]
  end

  defmodule Numbers do
    @moduledoc false
    use Ecto.Migration

    def change do
      create table(:numbers) do
        add(:n, :integer, null: false)
      end

      create(constraint(:numbers, :positive, check: "n > 0"))
    end
  end

  # What `psql` prints for a query, and its status.
  defp psql(config, arguments) do
    address = ["-h", config[:hostname], "-p", "#{config[:port]}", "-U", config[:username]]
    System.cmd("psql", address ++ arguments ++ [config[:database]], stderr_to_stdout: true)
  end

  defp migrate!(repo, version, options \\ []),
    do: :ok = Ecto.Migrator.up(repo, version, Numbers, [log: false] ++ options)

  test "a database is made and dropped once", %{config: config} do
    assert Postgres.storage_status(config) == :down
    assert Postgres.storage_up(config) == :ok
    assert Postgres.storage_up(config) == {:error, :already_up}
    assert Postgres.storage_status(config) == :up
    assert Postgres.storage_down(config) == :ok
    assert Postgres.storage_down(config) == {:error, :already_down}
    assert Postgres.storage_status(config) == :down
  end

  test "a role that is not there, or may not, makes and drops nothing", %{config: config} do
    stranger = Keyword.put(config, :username, "stranger")
    guest = Keyword.put(config, :username, "guest")
    admin = Keyword.put(config, :database, "postgres")
    assert {"", 0} = psql(admin, ["-c", "create role guest login"])
    assert {:error, _no_role} = Postgres.storage_up(stranger)
    assert {:error, _no_role} = Postgres.storage_status(stranger)
    assert {:error, message} = Postgres.storage_up(guest)
    assert message =~ "permission denied to create database"
    assert Postgres.storage_up(config) == :ok
    assert Postgres.storage_up(guest) == {:error, :already_up}
    assert {:error, message} = Postgres.storage_down(guest)
    assert message =~ "must be owner of database"
    assert Postgres.storage_status(config) == :up
  end

  test "the structure of one database makes another one", %{config: config, tmp_dir: directory} do
    other = Keyword.update!(config, :database, &(&1 <> "_other"))
    for each <- [config, other], do: :ok = Postgres.storage_up(each)

    sql =
      "create schema app; create table app.posts (title varchar(20) unique); " <>
        "create view app.long as select * from app.posts where length(title) > 9"

    assert {"", 0} = psql(config, ["-c", sql])
    assert {:ok, path} = Postgres.structure_dump(directory, config)
    assert path == Path.join(directory, "structure.sql")
    assert {:ok, ^path} = Postgres.structure_load(directory, other)
    insert = ["-c", "insert into app.posts values ('0123456789') returning title"]
    assert {"0123456789\n", 0} = psql(other, insert)
    assert {message, 1} = psql(other, insert)
    assert message =~ "posts_title_key"
    assert {"0\n", 0} = psql(config, ["-c", "select count(*) from app.long"])
    assert {"1\n", 0} = psql(other, ["-c", "select count(*) from app.long"])

    custom = Path.join(directory, "deep/er/custom.sql")
    assert {:ok, ^custom} = Postgres.structure_dump(directory, [dump_path: custom] ++ other)
    # Every dump has a random key.
    text = &String.replace(File.read!(&1), ~r/^\\(un)?restrict \w+$/m, "")
    assert text.(custom) == text.(path)
    refute File.read!(custom) =~ "0123456789"
  end

  test "what cannot be loaded is an error with PostgreSQL's words",
       %{config: config, tmp_dir: directory} do
    :ok = Postgres.storage_up(config)
    path = Path.join(directory, "structure.sql")
    assert {:error, message} = Postgres.structure_load(directory, config)
    assert message =~ path
    File.write!(path, "create table first (); create table second (x missing);")
    assert {:error, message} = Postgres.structure_load(directory, config)
    assert message =~ ~s(ERROR: type "missing" does not exist)
  end

  test "a structure has the versions of migrations of the schemas that are asked for",
       %{tmp_dir: directory} do
    alias EctoStorage.PoolRepo
    PoolRepo.query!("create schema tenant")
    migrate!(PoolRepo, 71)
    migrate!(PoolRepo, 72, prefix: "tenant")
    has = &~s[INSERT INTO #{&1}."schema_migrations" (version) VALUES (#{&2})]

    dump = fn prefixes ->
      config = PoolRepo.config() ++ prefixes
      assert {:ok, path} = Postgres.structure_dump(directory, config)
      File.read!(path)
    end

    all = dump.([])
    assert all =~ "CREATE TABLE public.numbers" and all =~ "CREATE TABLE tenant.numbers"
    assert all =~ has.("public", 71)
    refute all =~ has.("tenant", 72)

    both = dump.(dump_prefixes: ["public", "tenant"])
    assert both =~ has.("public", 71) and both =~ has.("tenant", 72)

    tenant = dump.(dump_prefixes: ["tenant"])
    refute tenant =~ "public.numbers" or tenant =~ has.("public", 71)
    assert tenant =~ "CREATE TABLE tenant.numbers" and tenant =~ has.("tenant", 72)
    assert tenant =~ "CONSTRAINT positive CHECK ((n > 0))"

    # Loaded, it leaves nothing to migrate.
    config = Keyword.put(PoolRepo.config(), :database, "loaded")
    :ok = Postgres.storage_up(config)
    assert {:ok, _path} = Postgres.structure_load(directory, config)
    versions = ["-c", "select version from tenant.schema_migrations"]
    assert {"72\n", 0} = psql(config, versions)

    arguments = ["--data-only", "--table", "tenant.schema_migrations"]
    assert {output, 0} = Postgres.dump_cmd(arguments, [], PoolRepo.config())
    assert output =~ "COPY tenant.schema_migrations"
    assert output =~ ~r/^72\t/m
  end
end
