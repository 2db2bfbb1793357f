defmodule Integration.ElectricTest do
  @moduledoc """
  What Electric's sync service does with a database, statement by statement.

  After the pages "PostgreSQL Permissions", "Deployment", "Troubleshooting" and "Config" of its documentation, and the
  order in which its source of August 2026 runs the statements.
  """
  use ExUnit.Case, async: true

  alias Integration.Subscriber

  @moduletag mode: :shared

  @slot "electric_slot_default"
  @publication "electric_publication_default"
  @lock "SELECT pg_advisory_lock(hashtext('#{@slot}'))"
  @create_publication "CREATE PUBLICATION \"#{@publication}\" WITH (publish_generated_columns = stored)"
  @create_slot "CREATE_REPLICATION_SLOT \"#{@slot}\" LOGICAL pgoutput NOEXPORT_SNAPSHOT"
  @start "START_REPLICATION SLOT \"#{@slot}\" LOGICAL 0/0 " <>
           "(proto_version '1', publication_names '#{@publication}')"

  # How values look as text, wherever the cluster or the database is configured otherwise.
  @display_settings [
    "SET bytea_output = 'hex'",
    "SET DateStyle = 'ISO, DMY'",
    "SET TimeZone = 'UTC'",
    "SET extra_float_digits = 1",
    "SET IntervalStyle = 'iso_8601'"
  ]

  setup do
    server =
      start_supervised!({PgliteEx, settings: [wal_level: "logical"], database: "application"})

    conn = start_supervised!({Postgrex, PgliteEx.connection_opts(server, pool_size: 5)})
    query!(conn, "create table items (id int primary key, title text, at timestamptz)")
    %{server: server, conn: conn}
  end

  defp query!(conn, sql, parameters \\ []), do: Postgrex.query!(conn, sql, parameters).rows

  defp connect!(server, options \\ []) do
    {:ok, subscriber} = Subscriber.start_link(PgliteEx.connection_opts(server, options))
    subscriber
  end

  # The sequence up to the slot. The connection keeps the lock as long as it is there.
  defp connect_and_lock!(server) do
    subscriber = connect!(server)

    assert [[_identifier, "1", _position, "application"]] =
             Subscriber.query!(subscriber, "IDENTIFY_SYSTEM")

    assert [[version, _pid, "60000"]] =
             Subscriber.query!(subscriber, """
             SELECT current_setting('server_version_num'), pg_backend_pid(),
               (SELECT setting FROM pg_settings WHERE name = 'wal_sender_timeout')
             """)

    assert String.to_integer(version) >= 180_000
    assert [[""]] = Subscriber.query!(subscriber, @lock)
    subscriber
  end

  defp start_new!(server) do
    subscriber = connect_and_lock!(server)
    Subscriber.query!(subscriber, @create_publication)

    # A slot of an earlier publication would be of no use.
    assert {:error, %Postgrex.Error{postgres: %{code: :undefined_object, message: message}}} =
             Subscriber.query(subscriber, "SELECT pg_drop_replication_slot('#{@slot}')")

    assert message == "replication slot \"#{@slot}\" does not exist"
    {:ok, created} = Subscriber.query(subscriber, @create_slot)
    assert created.columns == ["slot_name", "consistent_point", "snapshot_name", "output_plugin"]
    assert [[@slot, _position, nil, "pgoutput"]] = created.rows
    stream(subscriber)
  end

  defp stream(subscriber) do
    Enum.each(@display_settings, &Subscriber.query!(subscriber, &1))
    :ok = Subscriber.stream(subscriber, @start)
    subscriber
  end

  # Tables are added to the publication when somebody asks for them.
  defp publish!(conn, table) do
    Postgrex.transaction(conn, fn conn ->
      for sql <- [
            "ALTER PUBLICATION \"#{@publication}\" ADD TABLE \"public\".\"#{table}\"",
            "ALTER TABLE \"public\".\"#{table}\" REPLICA IDENTITY FULL"
          ] do
        query!(conn, "SAVEPOINT before")
        query!(conn, sql)
        query!(conn, "RELEASE SAVEPOINT before")
      end
    end)
  end

  test "the first start makes publication and slot, and streams the changes of tables that are added later",
       %{server: server, conn: conn} do
    start_new!(server)
    query!(conn, "insert into items values (1, 'not published yet', null)")
    publish!(conn, "items")

    assert query!(
             conn,
             """
             select pubinsert, pubupdate, pubdelete, pubtruncate, pubgencols = 's', pg_get_userbyid(pubowner)
             from pg_publication where pubname = $1
             """,
             [@publication]
           ) == [[true, true, true, true, true, "postgres"]]

    assert query!(
             conn,
             """
             select c.relname, c.relreplident from pg_publication_rel r join pg_publication p on p.oid = r.prpubid
             join pg_class c on c.oid = r.prrelid where p.pubname = $1
             """,
             [@publication]
           ) == [["items", "f"]]

    query!(conn, "insert into items values (2, 'two', '2026-11-27 12:00:00+02')")
    query!(conn, "update items set title = 'changed' where id = 2")
    query!(conn, "delete from items where id = 2")
    query!(conn, "truncate items")

    two = ["2", "two", "2026-11-27 10:00:00+00"]
    changed = ["2", "changed", "2026-11-27 10:00:00+00"]
    assert {_transaction, [{:insert, "items", ^two}], _lsn} = Subscriber.next_transaction()

    assert {_transaction, [{:update, "items", ^two, ^changed}], _lsn} =
             Subscriber.next_transaction()

    assert {_transaction, [{:delete, "items", ^changed}], _lsn} = Subscriber.next_transaction()
    assert {_transaction, [{:truncate, ["items"]}], _lsn} = Subscriber.next_transaction()
  end

  test "stored generated columns are published", %{server: server, conn: conn} do
    start_new!(server)

    query!(
      conn,
      "create table doubled (n int primary key, twice int generated always as (n * 2) stored)"
    )

    publish!(conn, "doubled")
    query!(conn, "insert into doubled values (21)")

    assert {_transaction, [{:insert, "doubled", ["21", "42"]}], _lsn} =
             Subscriber.next_transaction()
  end

  test "a shape is what a snapshot has, and those changes that the snapshot does not have",
       %{server: server, conn: conn} do
    start_new!(server)
    publish!(conn, "items")
    query!(conn, "insert into items values (1, 'before', null)")
    test = self()

    # One transaction is under way while the snapshot is taken.
    under_way =
      Task.async(fn ->
        Postgrex.transaction(conn, fn conn ->
          query!(conn, "insert into items values (2, 'under way', null)")
          send(test, :inserted)
          receive do: (:commit -> :ok)
        end)
      end)

    assert_receive :inserted, 10_000

    {:ok, {rows, xmin, xmax, in_progress}} =
      Postgrex.transaction(conn, fn conn ->
        query!(conn, "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")

        [[xmin, xmax, in_progress, _lsn]] =
          query!(conn, """
          SELECT pg_snapshot_xmin(s)::text::int8, pg_snapshot_xmax(s)::text::int8,
            array(SELECT pg_snapshot_xip(s)::text::int8), pg_current_wal_lsn()
          FROM pg_current_snapshot() s
          """)

        Enum.each(@display_settings, &query!(conn, &1))
        {query!(conn, "select id from items order by id"), xmin, xmax, in_progress}
      end)

    send(under_way.pid, :commit)
    Task.await(under_way)
    query!(conn, "insert into items values (3, 'after', null)")
    assert rows == [[1]]

    transactions = for _number <- 1..3, do: Subscriber.next_transaction()

    missing =
      for {transaction, [{:insert, "items", [id | _values]}], _lsn} <- transactions,
          transaction >= xmax or (transaction >= xmin and transaction in in_progress),
          do: id

    assert missing == ["2", "3"]
  end

  test "a second one waits for the lock until the first has gone, and finds the slot where it was",
       %{server: server, conn: conn} do
    first = start_new!(server)
    publish!(conn, "items")
    query!(conn, "insert into items values (1, 'one', null)")
    assert {_transaction, [{:insert, "items", ["1", _, _]}], lsn} = Subscriber.next_transaction()
    :ok = Subscriber.confirm(first, lsn)

    second = connect!(server)
    Subscriber.query!(second, "SET statement_timeout = '100ms'")

    assert {:error, %Postgrex.Error{postgres: %{code: :query_canceled, message: message}}} =
             Subscriber.query(second, @lock)

    assert message == "canceling statement due to statement timeout"
    Subscriber.query!(second, "SET statement_timeout = 0")

    waiting = Task.async(fn -> Subscriber.query!(second, @lock) end)
    Process.unlink(first)
    Process.exit(first, :kill)
    query!(conn, "insert into items values (2, 'meanwhile', null)")
    assert [[""]] = Task.await(waiting, 30_000)

    for {sql, name} <- [
          {@create_publication, "publication \"#{@publication}\""},
          {@create_slot, "replication slot \"#{@slot}\""}
        ] do
      assert {:error, %Postgrex.Error{postgres: %{code: :duplicate_object, message: message}}} =
               Subscriber.query(second, sql)

      assert message == name <> " already exists"
    end

    Subscriber.await_inactive(conn)

    assert [[confirmed]] =
             Subscriber.query!(
               second,
               "SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = '#{@slot}'"
             )

    assert {:ok, ^lsn} = Postgrex.ReplicationConnection.decode_lsn(confirmed)
    stream(second)
    assert {_transaction, [{:insert, "items", ["2", _, _]}], _lsn} = Subscriber.next_transaction()

    assert [[retained, lag]] =
             query!(
               conn,
               """
               SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::int8,
                 pg_wal_lsn_diff(pg_current_wal_lsn(), confirmed_flush_lsn)::int8
               FROM pg_replication_slots WHERE slot_name = $1
               """,
               [@slot]
             )

    assert retained >= lag and lag > 0
  end

  test "a lock that a session holds without its slot is broken", %{server: server, conn: conn} do
    Process.flag(:trap_exit, true)
    stuck = connect_and_lock!(server)
    Subscriber.query!(stuck, @create_publication)
    Subscriber.query!(stuck, @create_slot)
    second = connect!(server)
    waiting = Task.async(fn -> Subscriber.query!(second, @lock) end)

    assert [[true]] =
             query!(
               conn,
               """
               SELECT pg_terminate_backend(l.pid) FROM pg_locks l JOIN pg_replication_slots s
                 ON hashtext(s.slot_name) = (l.classid::bigint << 32) | l.objid::bigint
               WHERE NOT s.active AND s.database = current_database() AND s.slot_name = $1
                 AND l.locktype = 'advisory' AND l.objsubid = 1 AND l.granted
                 AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
               """,
               [@slot]
             )

    assert [[""]] = Task.await(waiting, 30_000)
    # It notices with its next query.
    catch_exit(Subscriber.query(stuck, "SELECT 1"))
  end

  test "a role that may only replicate and read has a publication that somebody else has made",
       %{server: server, conn: conn} do
    for sql <- [
          "create role electric_user with login replication",
          "grant connect on database application to electric_user",
          "grant usage on schema public to electric_user",
          "grant select on items to electric_user",
          "create publication #{@publication}",
          "alter publication #{@publication} add table public.items",
          "alter table public.items replica identity full"
        ],
        do: query!(conn, sql)

    subscriber = connect!(server, username: "electric_user")
    Subscriber.query!(subscriber, @lock)

    assert {:error, %Postgrex.Error{postgres: %{code: :insufficient_privilege}}} =
             Subscriber.query(subscriber, @create_publication)

    assert [["t", "t", "t", "t"]] =
             Subscriber.query!(
               subscriber,
               "SELECT pubinsert, pubupdate, pubdelete, pubtruncate FROM pg_publication " <>
                 "WHERE pubname = '#{@publication}'"
             )

    Subscriber.query!(subscriber, @create_slot)
    stream(subscriber)
    query!(conn, "insert into items values (1, 'one', null)")

    assert {_transaction, [{:insert, "items", ["1", "one", nil]}], _lsn} =
             Subscriber.next_transaction()
  end
end
