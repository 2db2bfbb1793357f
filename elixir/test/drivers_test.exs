defmodule PgliteEx.DriversTest do
  @moduledoc "Clients that others have written: psql, and p1_pgsql for the extended protocol."
  use ExUnit.Case, async: true

  alias PgliteEx.Servers

  @moduletag :tmp_dir

  setup_all do
    %{server: Servers.start!(mode: :isolated)}
  end

  describe "psql" do
    test "runs a script with errors in it", %{server: server} do
      {output, 0} =
        psql(server, """
        begin;
        create table t (id int primary key);
        savepoint s;
        insert into t values (1), (1);
        rollback to s;
        insert into t values (1);
        commit;
        select count(*) from t;
        """)

      assert output =~ "duplicate key value"
      assert output |> String.trim() |> String.ends_with?("1")
    end

    test "copies 200,000 rows in and out", %{server: server, tmp_dir: directory} do
      rows = Path.join(directory, "rows")
      File.write!(rows, for(n <- 1..200_000, do: "#{n}\trow #{n}\n"))
      copied = Path.join(directory, "copied")

      {_output, 0} =
        psql(server, """
        create table rows (id int, name text);
        \\copy rows from '#{rows}'
        \\copy (select * from rows order by id) to '#{copied}'
        """)

      assert File.read!(copied) == File.read!(rows)
    end

    test "sees an error's fields", %{server: server} do
      {output, 0} = psql(server, "\\set VERBOSITY verbose\nselect * from nowhere;")
      assert output =~ "42P01"
    end

    defp psql(server, script) do
      path = Path.join(System.tmp_dir!(), "pglite_ex-#{System.unique_integer([:positive])}.sql")
      File.write!(path, script)
      on_exit(fn -> File.rm(path) end)
      arguments = ["-X", "-At", PgliteEx.url(server), "-f", path]
      System.cmd("psql", arguments, stderr_to_stdout: true)
    end
  end

  describe "p1_pgsql" do
    @describetag :p1_pgsql

    setup %{server: server} do
      {host, port} = PgliteEx.address(server)

      {:ok, connection} =
        :pgsql.connect(
          host: host |> :inet.ntoa() |> List.to_string(),
          port: port,
          user: "postgres",
          password: "",
          database: "postgres",
          as_binary: true
        )

      on_exit(fn -> Process.alive?(connection) && :pgsql.terminate(connection) end)
      %{connection: connection}
    end

    test "passes parameters by the extended protocol", %{connection: connection} do
      sql = "select $1::int + 1, upper($2)"
      assert {:ok, "SELECT 1", :idle, _columns, rows} = :pgsql.pquery(connection, sql, [41, "a"])
      assert rows == [[int4: "42", text: "A"]]
    end

    test "prepares a statement and executes it again", %{connection: connection} do
      assert {:ok, :idle, [:int4], _columns} =
               :pgsql.prepare(connection, ~c"double", "select $1::int * 2")

      for n <- 1..3 do
        answer = "#{2 * n}"

        assert {:ok, {"SELECT 1", [[int4: ^answer]]}} =
                 :pgsql.execute(connection, ~c"double", [n])
      end
    end

    test "gets an error and goes on", %{connection: connection} do
      {:ok, :idle, _types, _columns} =
        :pgsql.prepare(connection, ~c"divide", "select 1 / $1::int")

      assert {:error, fields} = :pgsql.execute(connection, ~c"divide", [0])
      assert fields[:code] == "22012"
      assert {:ok, {"SELECT 1", [[int4: "1"]]}} = :pgsql.execute(connection, ~c"divide", [1])
    end
  end
end
