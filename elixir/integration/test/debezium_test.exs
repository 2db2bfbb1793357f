defmodule Integration.DebeziumTest do
  @moduledoc """
  What Debezium's connector for PostgreSQL does with a database, statement by statement.

  After the page "Debezium connector for PostgreSQL" of its documentation (the sections about snapshots, permissions,
  replica identities, heartbeats, logical decoding messages, signals and `publication.autocreate.mode`), and the order
  in which its source runs the statements. The connector uses `pgoutput`, and the names are its defaults.
  """
  use ExUnit.Case, async: true

  alias Integration.Subscriber
  alias Postgrex.ReplicationConnection

  @moduletag mode: :shared

  @slot "debezium"
  @publication "dbz_publication"
  @create_slot "CREATE_REPLICATION_SLOT \"#{@slot}\"  LOGICAL pgoutput "
  @snapshot "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"

  setup do
    server = start_supervised!({PgliteEx, settings: [wal_level: "logical"], database: "shop"})
    owner = start_supervised!({Postgrex, PgliteEx.connection_opts(server, pool_size: 3)})

    # The role replicates, and owns the tables together with the one that made them.
    for sql <- [
          "create table orders (id serial primary key, item text not null, note text)",
          "create table unrelated (n int)",
          "create role debezium replication login",
          "create role replication_group",
          "grant replication_group to postgres, debezium",
          "alter table orders owner to replication_group",
          "grant create on database shop to debezium",
          "insert into orders (item) values ('first'), ('second')"
        ],
        do: query!(owner, sql)

    options = PgliteEx.connection_opts(server, username: "debezium", pool_size: 2)
    connector = start_supervised!({Postgrex, options}, id: :connector)
    %{owner: owner, connector: connector, options: options}
  end

  defp query!(conn, sql, parameters \\ []), do: Postgrex.query!(conn, sql, parameters).rows

  defp connect!(options) do
    {:ok, subscriber} = Subscriber.start_link(options)
    subscriber
  end

  defp start(lsn) do
    "START_REPLICATION SLOT \"#{@slot}\" LOGICAL #{lsn} " <>
      "(\"proto_version\" '1', \"publication_names\" '#{@publication}', \"messages\" 'true')"
  end

  # `publication.autocreate.mode=filtered`, in a transaction of the replication connection.
  defp publish!(subscriber, tables) do
    assert [["f"]] = Subscriber.query!(subscriber, "select pg_is_in_recovery()")
    Subscriber.query!(subscriber, "BEGIN")
    select = "SELECT puballtables FROM pg_publication WHERE pubname = '#{@publication}'"
    assert [] = Subscriber.query!(subscriber, select)
    Subscriber.query!(subscriber, "CREATE PUBLICATION #{@publication} FOR TABLE #{tables};")
    Subscriber.query!(subscriber, "COMMIT")
  end

  # Without a snapshot of the tables.
  defp start_streaming!(options, tables \\ ~s("public"."orders")) do
    subscriber = connect!(options)
    publish!(subscriber, tables)
    [[@slot, lsn, _snapshot, "pgoutput"]] = Subscriber.query!(subscriber, @create_slot)
    :ok = Subscriber.stream(subscriber, start(lsn))
    subscriber
  end

  defp await_confirmed(conn, lsn, deadline \\ System.monotonic_time(:millisecond) + 30_000) do
    {:ok, text} = ReplicationConnection.encode_lsn(lsn)

    if query!(conn, "select confirmed_flush_lsn >= '#{text}' from pg_replication_slots") != [
         [true]
       ] do
      assert System.monotonic_time(:millisecond) < deadline, "#{text} is not confirmed"
      await_confirmed(conn, lsn, deadline)
    end
  end

  test "the checks before a start find a server that can replicate, and a role that may",
       %{connector: connector} do
    assert query!(connector, "SHOW wal_level") == [["logical"]]

    assert query!(connector, """
           SELECT rolname, rolsuper, rolcanlogin, rolreplication FROM pg_roles
           WHERE pg_has_role('debezium', oid, 'member') ORDER BY rolname
           """) == [["debezium", false, true, true], ["replication_group", false, false, false]]

    assert query!(
             connector,
             "select * from pg_replication_slots where slot_name = $1 and database = $2 and plugin = $3",
             [@slot, "shop", "pgoutput"]
           ) == []
  end

  test "the initial snapshot is that of the slot, so that rows and changes together are everything, once",
       %{owner: owner, connector: connector, options: options} do
    subscriber = connect!(options)
    publish!(subscriber, ~s("public"."orders"))
    [[@slot, consistent, snapshot, "pgoutput"]] = Subscriber.query!(subscriber, @create_slot)
    assert is_binary(snapshot)

    query!(owner, "insert into orders (item) values ('third')")
    query!(owner, "update orders set item = 'changed' where id = 1")

    {:ok, rows} =
      Postgrex.transaction(connector, fn conn ->
        query!(conn, @snapshot)
        query!(conn, "SET TRANSACTION SNAPSHOT '#{snapshot}'")
        query!(conn, "SET lock_timeout = 10000")
        query!(conn, ~s(LOCK TABLE "public"."orders" IN ACCESS SHARE MODE))

        assert [[_lsn, _transaction]] =
                 query!(conn, "SELECT pg_current_wal_lsn(), txid_current()")

        query!(conn, ~s(SELECT "id", "item" FROM "public"."orders"))
      end)

    assert rows == [[1, "first"], [2, "second"]]

    assert [[_identifier, _timeline, position, "shop"]] =
             Subscriber.query!(subscriber, "IDENTIFY_SYSTEM")

    decode = &elem(ReplicationConnection.decode_lsn(&1), 1)
    assert decode.(position) > decode.(consistent)
    :ok = Subscriber.stream(subscriber, start(consistent))

    assert {_xid, [{:insert, "orders", ["3", "third", nil]}], _lsn} =
             Subscriber.next_transaction()

    assert {_xid, [{:update, "orders", nil, ["1", "changed", nil]}], _lsn} =
             Subscriber.next_transaction()
  end

  test "a snapshot is gone with the next command of the connection that made it",
       %{connector: connector, options: options} do
    subscriber = connect!(options)
    publish!(subscriber, ~s("public"."orders"))
    [[@slot, _lsn, snapshot, _plugin]] = Subscriber.query!(subscriber, @create_slot)
    Subscriber.query!(subscriber, "IDENTIFY_SYSTEM")

    Postgrex.transaction(connector, fn conn ->
      query!(conn, @snapshot)

      assert {:error, %Postgrex.Error{postgres: %{code: code}}} =
               Postgrex.query(conn, "SET TRANSACTION SNAPSHOT '#{snapshot}'", [])

      assert code in [:undefined_object, :invalid_parameter_value]
    end)
  end

  test "a publication for all tables is for superusers, and one for chosen tables is changed",
       %{owner: owner, options: options} do
    subscriber = connect!(options)

    assert {:error, %Postgrex.Error{postgres: %{code: :insufficient_privilege}}} =
             Subscriber.query(subscriber, "CREATE PUBLICATION #{@publication} FOR ALL TABLES;")

    publish!(subscriber, ~s("public"."orders"))
    query!(owner, "create table invoices (id int primary key)")
    query!(owner, "alter table invoices owner to replication_group")
    tables = ~s("public"."invoices", "public"."orders")
    Subscriber.query!(subscriber, "ALTER PUBLICATION #{@publication} SET TABLE #{tables};")

    assert query!(
             owner,
             "SELECT schemaname, tablename FROM pg_catalog.pg_publication_tables WHERE pubname = $1 ORDER BY 2",
             [@publication]
           ) == [["public", "invoices"], ["public", "orders"]]
  end

  test "the replica identity says what is known of a row before its change",
       %{owner: owner, connector: connector, options: options} do
    # `replica.identity.autoset.values`
    identity = fn ->
      query!(connector, """
      SELECT relreplident FROM pg_catalog.pg_class c
      LEFT JOIN pg_catalog.pg_namespace n ON c.relnamespace = n.oid
      WHERE n.nspname = 'public' AND c.relname = 'orders'
      """)
    end

    assert identity.() == [["d"]]
    long = String.duplicate("long", 1000)
    query!(owner, "alter table orders alter note set storage external")
    query!(owner, "update orders set note = $1 where id = 2", [long])
    start_streaming!(options)

    query!(owner, "update orders set item = 'other' where id = 2")

    assert {_xid, [{:update, "orders", nil, ["2", "other", :unknown]}], _lsn} =
             Subscriber.next_transaction()

    query!(owner, "delete from orders where id = 1")

    assert {_xid, [{:delete, "orders", ["1", :unknown, :unknown]}], _lsn} =
             Subscriber.next_transaction()

    query!(connector, "ALTER TABLE public.orders REPLICA IDENTITY FULL;")
    assert identity.() == [["f"]]
    query!(owner, "delete from orders where id = 2")

    assert {_xid, [{:delete, "orders", ["2", "other", ^long]}], _lsn} =
             Subscriber.next_transaction()

    query!(owner, "truncate orders")
    assert {_xid, [{:truncate, ["orders"]}], _lsn} = Subscriber.next_transaction()
  end

  test "after a restart the slot goes on where the connector has stored that it was",
       %{owner: owner, connector: connector, options: options} do
    subscriber = start_streaming!(options)
    query!(owner, "insert into orders (item) values ('stored')")
    query!(owner, "insert into orders (item) values ('stored as well, and not confirmed')")
    assert {_xid, [{:insert, "orders", ["3", _, _]}], lsn} = Subscriber.next_transaction()
    assert {_xid, [{:insert, "orders", ["4", _, _]}], stored} = Subscriber.next_transaction()
    :ok = Subscriber.confirm(subscriber, lsn)
    await_confirmed(owner, lsn)
    Process.unlink(subscriber)
    Process.exit(subscriber, :kill)
    query!(owner, "insert into orders (item) values ('meanwhile')")
    Subscriber.await_inactive(owner)

    assert [[false, _xmin]] =
             query!(
               connector,
               "select active, catalog_xmin::text from pg_replication_slots where slot_name = $1",
               [@slot]
             )

    # `slot.seek.to.known.offset.on.start`
    {:ok, text} = ReplicationConnection.encode_lsn(stored)
    subscriber = connect!(options)
    seek = "SELECT pg_replication_slot_advance('#{@slot}', '#{text}')"
    assert [["(debezium," <> _position]] = Subscriber.query!(subscriber, seek)
    :ok = Subscriber.stream(subscriber, start(text))

    assert {_xid, [{:insert, "orders", ["5", "meanwhile", nil]}], _lsn} =
             Subscriber.next_transaction()

    # A slot has one subscriber.
    second = connect!(options)
    Process.unlink(second)
    monitor = Process.monitor(second)
    Subscriber.stream(second, start(text))
    assert_receive {:DOWN, ^monitor, :process, ^second, %Postgrex.Error{postgres: error}}, 10_000
    assert error.code == :object_in_use
  end

  test "a heartbeat lets the slot move on while only other tables change",
       %{owner: owner, options: options} do
    query!(owner, "create table heartbeat (id int primary key, at timestamptz)")
    query!(owner, "alter table heartbeat owner to replication_group")
    subscriber = start_streaming!(options, ~s("public"."heartbeat", "public"."orders"))
    query!(owner, "insert into unrelated select generate_series(1, 10000)")
    [[before]] = query!(owner, "select pg_current_wal_lsn() - '0/0'::pg_lsn")

    # `heartbeat.action.query`
    query!(
      owner,
      "insert into heartbeat values (1, now()) on conflict (id) do update set at = excluded.at"
    )

    assert {_xid, [{:insert, "heartbeat", ["1", _at]}], lsn} = Subscriber.next_transaction()
    assert lsn > Decimal.to_integer(before)
    :ok = Subscriber.confirm(subscriber, lsn)
    await_confirmed(owner, lsn)
  end

  test "logical decoding messages arrive in the order of the WAL, in a transaction or without one",
       %{owner: owner, options: options} do
    start_streaming!(options)

    Postgrex.transaction(owner, fn conn ->
      query!(conn, "insert into orders (item) values ('with a message')")
      query!(conn, "select pg_logical_emit_message(true, 'outbox', 'in it')")
    end)

    query!(owner, "select pg_logical_emit_message(false, 'outbox', 'without')")
    query!(owner, "select pg_logical_emit_message(true, 'outbox', 'last')")

    assert {_xid, [{:insert, "orders", _row}, {:message, true, "outbox", "in it"}], _lsn} =
             Subscriber.next_transaction()

    assert {nil, [{:message, false, "outbox", "without"}], nil} = Subscriber.next_transaction()
    assert {_xid, [{:message, true, "outbox", "last"}], _lsn} = Subscriber.next_transaction()
  end

  test "the marks around a chunk of an incremental snapshot tell which of its rows have changed meanwhile",
       %{owner: owner, connector: connector, options: options} do
    query!(
      owner,
      "create table debezium_signal (id text primary key, type text not null, data text)"
    )

    query!(owner, "alter table debezium_signal owner to replication_group")
    start_streaming!(options, ~s("public"."debezium_signal", "public"."orders"))
    signal = "INSERT INTO debezium_signal (id, type, data) VALUES ($1, $2, $3)"

    query!(owner, signal, [
      "ad-hoc",
      "execute-snapshot",
      ~s({"data-collections": ["public.orders"]})
    ])

    assert {_xid, [{:insert, "debezium_signal", ["ad-hoc" | _]}], _lsn} =
             Subscriber.next_transaction()

    query!(connector, signal, ["chunk-open", "snapshot-window-open", nil])
    query!(owner, "update orders set item = 'changed meanwhile' where id = 2")
    chunk = query!(connector, "SELECT id, item FROM orders ORDER BY id LIMIT 1024")
    query!(connector, signal, ["chunk-close", "snapshot-window-close", nil])

    window = for _number <- 1..3, do: elem(Subscriber.next_transaction(), 1)

    assert [
             [{:insert, "debezium_signal", ["chunk-open" | _]}],
             [{:update, "orders", nil, ["2", "changed meanwhile", nil]}],
             [{:insert, "debezium_signal", ["chunk-close" | _]}]
           ] = window

    changed = for [{:update, "orders", _old, [id | _]}] <- window, do: String.to_integer(id)
    assert Enum.reject(chunk, &(hd(&1) in changed)) == [[1, "first"]]
  end

  test "a slot for a failover is made, and dropped by another connection when the connector ends",
       %{owner: owner, connector: connector, options: options} do
    subscriber = connect!(options)
    Subscriber.query!(subscriber, @create_slot <> "( FAILOVER )")

    assert query!(owner, "select failover, temporary, two_phase from pg_replication_slots") ==
             [[true, false, false]]

    GenServer.stop(subscriber)
    query!(connector, "select pg_drop_replication_slot('#{@slot}')")
    assert query!(owner, "select from pg_replication_slots") == []
  end
end
