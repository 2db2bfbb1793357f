defmodule Integration.ReplicationTest do
  @moduledoc "Replication connections to servers of every kind, and what they may do."
  use ExUnit.Case, async: true

  alias Integration.Subscriber

  @moduletag mode: :shared

  @create_slot "CREATE_REPLICATION_SLOT s LOGICAL pgoutput NOEXPORT_SNAPSHOT"
  @start "START_REPLICATION SLOT s LOGICAL 0/0 (proto_version '1', publication_names 'p')"

  defp start!(options \\ []) do
    server = start_supervised!({PgliteEx, [settings: [wal_level: "logical"]] ++ options})
    conn = start_supervised!({Postgrex, PgliteEx.connection_opts(server)})
    query!(conn, "create table t (id int primary key, text text)")
    query!(conn, "create publication p for table t")
    {server, conn}
  end

  defp query!(conn, sql), do: Postgrex.query!(conn, sql, []).rows

  defp subscribe!(options) do
    {:ok, subscriber} = Subscriber.start_link(options)
    Subscriber.query!(subscriber, @create_slot)
    :ok = Subscriber.stream(subscriber, @start)
    subscriber
  end

  test "a subscriber authenticates as every client does" do
    {server, conn} = start!(auth: :scram_sha_256, password: "secret")
    options = PgliteEx.connection_opts(server)
    subscribe!(options)
    query!(conn, "insert into t values (1, 'one')")
    assert {_transaction, [{:insert, "t", ["1", "one"]}], _lsn} = Subscriber.next_transaction()

    Process.flag(:trap_exit, true)

    assert {:error, %Postgrex.Error{postgres: %{code: :invalid_password}}} =
             Subscriber.start_link(Keyword.put(options, :password, "wrong"))

    query!(conn, "create role plain login password 'secret'")

    assert {:error, %Postgrex.Error{postgres: %{code: :insufficient_privilege}}} =
             Subscriber.start_link(Keyword.put(options, :username, "plain"))
  end

  test "without wal_level a slot for changes is refused, with the setting's name" do
    server = start_supervised!(PgliteEx)
    {:ok, subscriber} = Subscriber.start_link(PgliteEx.connection_opts(server))
    {:error, %Postgrex.Error{postgres: error}} = Subscriber.query(subscriber, @create_slot)
    assert error.code == :object_not_in_prerequisite_state
    assert error.message =~ "wal_level"
  end

  test "a server of clusters of one connection refuses replication, and says where it works" do
    server = start_supervised!({PgliteEx, mode: :isolated})
    Process.flag(:trap_exit, true)

    assert {:error, %Postgrex.Error{postgres: error}} =
             Subscriber.start_link(PgliteEx.connection_opts(server))

    assert error.code == :feature_not_supported
    assert error.hint =~ "mode shared"
  end

  test "a branch has its own slots, and none of its server's" do
    {server, conn} = start!()
    subscribe!(PgliteEx.connection_opts(server))
    {:ok, branch} = PgliteEx.branch(server)
    options = PgliteEx.connection_opts(branch)
    branch_conn = start_supervised!({Postgrex, options}, id: :branch)
    assert query!(branch_conn, "select slot_name from pg_replication_slots") == []

    subscribe!(options)
    query!(branch_conn, "insert into t values (1, 'in the branch')")
    assert {_id, [{:insert, "t", ["1", "in the branch"]}], _lsn} = Subscriber.next_transaction()
    query!(conn, "insert into t values (1, 'in the server')")
    assert {_id, [{:insert, "t", ["1", "in the server"]}], _lsn} = Subscriber.next_transaction()
  end

  test "a subscriber that does not read keeps nobody waiting, and gets everything when it reads" do
    {server, conn} = start!()
    subscriber = subscribe!(PgliteEx.connection_opts(server))
    :sys.suspend(subscriber)
    # More than all buffers on the way hold.
    text = String.duplicate("text", 250)
    query!(conn, "insert into t select i, '#{text}' from generate_series(1, 20000) i")
    query!(conn, "insert into t values (0, 'next')")
    assert query!(conn, "select count(*) from t") == [[20_001]]
    :sys.resume(subscriber)

    {_transaction, inserts, _lsn} = Subscriber.next_transaction()
    assert length(inserts) == 20_000

    for {insert, number} <- Enum.with_index(inserts, 1),
        do: assert(insert == {:insert, "t", ["#{number}", text]})

    assert {_transaction, [{:insert, "t", ["0", "next"]}], _lsn} = Subscriber.next_transaction()
  end

  test "a server that stops sends a subscriber everything first" do
    {:ok, server} = PgliteEx.start_link(settings: [wal_level: "logical"])
    conn = start_supervised!({Postgrex, PgliteEx.connection_opts(server)}, id: :conn)
    query!(conn, "create table t (id int primary key, text text)")
    query!(conn, "create publication p for table t")
    Process.flag(:trap_exit, true)
    subscriber = subscribe!(PgliteEx.connection_opts(server))
    :sys.suspend(subscriber)
    query!(conn, "insert into t select i, repeat('text', 250) from generate_series(1, 20000) i")
    stop_supervised!(:conn)

    stopping = Task.async(fn -> PgliteEx.stop(server) end)
    :sys.resume(subscriber)
    assert {_transaction, inserts, _lsn} = Subscriber.next_transaction()
    assert length(inserts) == 20_000
    assert Task.await(stopping, 30_000) == :ok
  end

  test "a subscription of the cluster's own is refused" do
    {_server, conn} = start!()

    assert {:error, %Postgrex.Error{}} =
             Postgrex.query(
               conn,
               "create subscription s connection 'host=127.0.0.1 port=1' publication p",
               []
             )

    assert query!(conn, "select 1") == [[1]]
  end
end
