defmodule Integration.PostgrexTest do
  @moduledoc "Postgrex against both modes."
  use ExUnit.Case, async: true

  for mode <- [:shared, :isolated] do
    describe "one connection to a #{mode} server" do
      @describetag mode: mode

      setup do
        # A new cluster serves to see that a connection is made again.
        server = start_supervised!({PgliteEx, mode: unquote(mode), on_data_loss: :restart})
        options = PgliteEx.connection_opts(server, pool_size: 1)
        %{server: server, conn: start_supervised!({Postgrex, options})}
      end

      test "sends and receives values of many types", %{conn: conn} do
        for {type, value} <- [
              {"int8", 9_223_372_036_854_775_807},
              {"numeric", Decimal.new("12345678901234567890.123456789")},
              {"text", "grüße, 世界"},
              {"bytea", <<0, 255, 1>>},
              {"timestamptz", ~U[2026-01-02 03:04:05.678901Z]},
              {"interval", %Postgrex.Interval{months: 1, days: 2, secs: 3, microsecs: 4}},
              {"uuid", <<1::128>>},
              {"int4[]", [1, nil, 3]},
              {"inet", %Postgrex.INET{address: {127, 0, 0, 1}, netmask: nil}},
              {"int4range", %Postgrex.Range{lower: 1, upper: 5, upper_inclusive: false}}
            ] do
          assert %{rows: [[^value]]} = Postgrex.query!(conn, "select $1::#{type}", [value])
        end
      end

      test "prepares a statement and executes it many times", %{conn: conn} do
        query = Postgrex.prepare!(conn, "double", "select $1::int * 2")

        for n <- 1..100 do
          assert %{rows: [[answer]]} = Postgrex.execute!(conn, query, [n])
          assert answer == 2 * n
        end

        assert :ok = Postgrex.close(conn, query)
      end

      test "notices that a prepared statement's table has changed", %{conn: conn} do
        Postgrex.query!(conn, "create table changing (a int)", [])
        query = Postgrex.prepare!(conn, "", "select * from changing")
        assert %{columns: ["a"]} = Postgrex.execute!(conn, query, [])
        Postgrex.query!(conn, "alter table changing add column b text", [])
        assert %{columns: ["a", "b"]} = Postgrex.query!(conn, "select * from changing", [])
      end

      test "streams a result in chunks", %{conn: conn} do
        Postgrex.transaction(conn, fn conn ->
          counts =
            conn
            |> Postgrex.stream("select generate_series(1, 10000)", [], max_rows: 300)
            |> Enum.map(& &1.num_rows)

          assert Enum.sum(counts) == 10_000
          assert Enum.max(counts) <= 300
        end)
      end

      test "copies in and out", %{conn: conn} do
        Postgrex.query!(conn, "create table copied (n int, line text)", [])
        lines = for n <- 1..20_000, do: "#{n}\tline #{n}\n"

        Postgrex.transaction(conn, fn conn ->
          into = Postgrex.stream(conn, "copy copied from stdin", [])
          Enum.into(lines, into)
          out = Postgrex.stream(conn, "copy (select * from copied order by n) to stdout", [])
          assert out |> Enum.map(& &1.rows) |> IO.iodata_to_binary() == IO.iodata_to_binary(lines)
        end)
      end

      test "goes on after an error, inside and outside of a transaction", %{conn: conn} do
        assert {:error, %Postgrex.Error{postgres: %{code: :division_by_zero}}} =
                 Postgrex.query(conn, "select 1/0", [])

        Postgrex.transaction(conn, fn conn ->
          assert {:error, _} = Postgrex.query(conn, "select 1/0", [], mode: :savepoint)
          assert {:ok, _} = Postgrex.query(conn, "select 1", [])
        end)

        assert {:ok, %{rows: [[1]]}} = Postgrex.query(conn, "select 1", [])
      end

      test "recovers from a query that takes too long", %{conn: conn, server: server} do
        # Postgrex cancels the query and disconnects; which of the two it hears of first is open.
        assert {:error, %error{}} = Postgrex.query(conn, "select pg_sleep(60)", [], timeout: 100)

        assert error in [DBConnection.ConnectionError, Postgrex.Error]

        assert {:ok, %{rows: [[1]]}} = Postgrex.query(conn, "select 1", [], queue_target: 5_000)
        assert {:ok, %{"connections" => connections}} = PgliteEx.stats(server)
        assert connections <= 2
      end

      test "reconnects by itself when the program has been killed", %{conn: conn, server: server} do
        assert {:ok, _} = Postgrex.query(conn, "select 1", [])
        wasm_port = PgliteEx.Server.child(server, PgliteEx.WasmPort)
        {:ok, %{"pid" => program}} = PgliteEx.WasmPort.hello(wasm_port)
        monitor = Process.monitor(wasm_port)
        {_output, 0} = System.cmd("kill", ["-KILL", program])
        assert_receive {:DOWN, ^monitor, :process, ^wasm_port, _reason}, 5_000
        assert_reconnected(conn)
      end
    end
  end

  describe "a pool of ten on a shared server" do
    @describetag mode: :shared

    setup do
      server = start_supervised!({PgliteEx, mode: :shared})
      options = PgliteEx.connection_opts(server, pool_size: 10)
      %{options: options, pool: start_supervised!({Postgrex, options})}
    end

    test "sees one database", %{pool: pool} do
      Postgrex.query!(pool, "create table counted (n int)", [])

      1..100
      |> Enum.map(
        &Task.async(fn -> Postgrex.query!(pool, "insert into counted values ($1)", [&1]) end)
      )
      |> Task.await_many(30_000)

      assert %{rows: [[100, 5050]]} =
               Postgrex.query!(pool, "select count(*), sum(n) from counted", [])
    end

    test "waits for row locks, and transactions do not see each other's changes", %{pool: pool} do
      Postgrex.query!(pool, "create table accounts (id int primary key, balance int)", [])
      Postgrex.query!(pool, "insert into accounts values (1, 0)", [])

      1..10
      |> Enum.map(fn _ ->
        Task.async(fn ->
          Postgrex.transaction(pool, fn conn ->
            %{rows: [[balance]]} =
              Postgrex.query!(conn, "select balance from accounts where id = 1 for update", [])

            Postgrex.query!(conn, "update accounts set balance = $1", [balance + 1])
          end)
        end)
      end)
      |> Task.await_many(30_000)

      assert %{rows: [[10]]} = Postgrex.query!(pool, "select balance from accounts", [])
    end

    test "notifies those who listen", %{pool: pool, options: options} do
      notifications = start_supervised!({Postgrex.Notifications, options})
      {:ok, reference} = Postgrex.Notifications.listen(notifications, "news")

      for n <- 1..100, do: Postgrex.query!(pool, "select pg_notify('news', $1)", ["#{n}"])

      for n <- 1..100 do
        payload = "#{n}"
        assert_receive {:notification, ^notifications, ^reference, "news", ^payload}, 5_000
      end
    end
  end

  # Postgrex backs off between its attempts, and says so by errors.
  defp assert_reconnected(conn, deadline \\ System.monotonic_time(:millisecond) + 20_000) do
    case Postgrex.query(conn, "select 1", [], queue_target: 5_000, queue_interval: 5_000) do
      {:ok, %{rows: [[1]]}} ->
        :ok

      {:error, error} ->
        assert System.monotonic_time(:millisecond) < deadline, Exception.message(error)
        assert_reconnected(conn, deadline)
    end
  end
end
