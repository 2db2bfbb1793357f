defmodule PgliteEx.ClientsTest do
  @moduledoc "Clients that come, go, vanish, do not read, or come in crowds."
  use ExUnit.Case, async: true

  alias PgliteEx.{Connection, HalfOpen, Options, Server, Servers, WireClient}

  setup context do
    # Tests of both modes start their own.
    if context[:describe], do: :ok, else: %{server: Servers.start!(mode: :isolated)}
  end

  for mode <- [:shared, :isolated] do
    describe "#{mode}:" do
      setup do
        %{server: Servers.start!(mode: unquote(mode))}
      end

      test "a client that vanishes in the middle of a startup packet leaves nothing behind",
           %{server: server} do
        client = WireClient.connect!(server)
        :ok = :gen_tcp.send(client, binary_part(WireClient.startup_packet(), 0, 10))
        vanish(client)
        assert :ok = Servers.await_connections(server, 0)
      end

      test "a client that vanishes in the middle of a result leaves nothing behind",
           %{server: server} do
        {client, _key} = WireClient.start_session!(server)
        sql = "select repeat('x', 1000) from generate_series(1, 100000)"
        :ok = :gen_tcp.send(client, WireClient.query_message(sql))
        assert {:ok, {?T, _columns}} = WireClient.receive_message(client)
        vanish(client)
        assert :ok = Servers.await_connections(server, 0)
      end

      test "a client that vanishes in the middle of a COPY leaves nothing behind",
           %{server: server} do
        {client, _key} = WireClient.start_session!(server)
        {:ok, []} = WireClient.query(client, "create table copied (line text)")
        :ok = :gen_tcp.send(client, WireClient.query_message("copy copied from stdin"))
        assert {:ok, {?G, _format}} = WireClient.receive_message(client)
        line = String.duplicate("x", 999) <> "\n"
        :ok = :gen_tcp.send(client, for(_ <- 1..1_000, do: [<<?d, 1_004::32>>, line]))
        vanish(client)
        assert :ok = Servers.await_connections(server, 0)
      end

      test "500 connections opened and closed by 50 processes leave nothing behind",
           %{server: server} do
        1..50
        |> Enum.map(fn _ ->
          Task.async(fn ->
            for _ <- 1..10 do
              {client, _key} = WireClient.start_session!(server)
              assert {:ok, [["1"]]} = WireClient.query(client, "select 1")
              :gen_tcp.close(client)
            end
          end)
        end)
        |> Task.await_many(60_000)

        assert :ok = Servers.await_connections(server, 0)
        assert connections(server) == []
      end

      @tag :cancel
      test "a web page's request gets nothing and reaches nothing", %{server: server} do
        # What a page can send as its body, or put into the head, is chosen by the page.
        statement = WireClient.query_message("create table reached ()")
        body = IO.iodata_to_binary([WireClient.startup_packet(), statement])
        head = "Host: localhost\r\nContent-Length: #{byte_size(body)}\r\n\r\n"

        for request <- [
              "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
              "POST / HTTP/1.1\r\n" <> head <> body,
              "POST / HTTP/1.1\r\n" <> head <> body <> String.duplicate("x", 50_000),
              # The beginnings of a TLS ClientHello and of a WebSocket over HTTP/2.
              <<0x16, 3, 1, 2, 0, 1, 0, 1, 0xFC, 3, 3>> <> body,
              "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" <> body
            ] do
          client = WireClient.connect!(server)
          :ok = :gen_tcp.send(client, request)
          # An end, orderly or, because not all was read, a reset.
          assert {:error, reason} = :gen_tcp.recv(client, 0, 30_000)
          assert reason in [:closed, :econnreset]
        end

        assert :ok = Servers.await_connections(server, 0)
        assert [[nil]] = WireClient.rows!(server, "select to_regclass('reached')")
      end

      test "a cancel request on a socket of its own cancels the query and makes no session",
           %{server: server} do
        {client, key} = WireClient.start_session!(server)
        sql = "do $$ begin raise notice 'running'; perform pg_sleep(60); end $$"
        :ok = :gen_tcp.send(client, WireClient.query_message(sql))
        # A notice is flushed at once: the query runs, and there is something to cancel.
        assert {:ok, {?N, _fields}} = WireClient.receive_message(client)

        canceler = WireClient.connect!(server)
        :ok = :gen_tcp.send(canceler, WireClient.cancel_request(key))
        assert {:error, :closed} = :gen_tcp.recv(canceler, 0, 10_000)

        assert {:ok, messages} = WireClient.receive_answer(client)
        assert {?E, fields} = List.keyfind(messages, ?E, 0)
        assert WireClient.sqlstate(fields) == "57014"
        assert :ok = Servers.await_connections(server, 1)
      end
    end
  end

  # A shared session does what its client has sent to the end, as in PostgreSQL.
  @tag :cancel
  test "an isolated client that vanishes while its query computes leaves nothing behind",
       %{server: server} do
    {client, _key} = WireClient.start_session!(server)
    sql = "select count(*) from generate_series(1, 1e12)"
    :ok = :gen_tcp.send(client, WireClient.query_message(sql))
    vanish(client)
    assert :ok = Servers.await_connections(server, 0)
  end

  test "a client that never reads takes one window of memory and stalls nobody",
       %{server: server} do
    {greedy, _key} = WireClient.start_session!(server)
    [connection] = connections(server)
    sql = "select repeat('x', 100000) from generate_series(1, 1000)"
    :ok = :gen_tcp.send(greedy, WireClient.query_message(sql))
    await_blocked_writer(connection)

    {other, _key} = WireClient.start_session!(server)
    for _ <- 1..100, do: assert({:ok, [["1"]]} = WireClient.query(other, "select 1"))

    {:binary, binaries} = Process.info(connection, :binary)
    held = binaries |> Enum.uniq_by(&elem(&1, 0)) |> Enum.map(&elem(&1, 1)) |> Enum.sum()
    # A window, and what frames take on top of it; the result has a hundred million bytes.
    assert held <= 4 * 262_144

    # And it gets everything once it reads.
    assert {:ok, messages} = WireClient.receive_answer(greedy)
    assert Enum.count(messages, &match?({?D, _row}, &1)) == 1_000
  end

  test "a client that does not read for as long as send_timeout says is closed, and no other" do
    server = Servers.start!(mode: :isolated, send_timeout: 200)
    {greedy, _key} = WireClient.start_session!(server)
    [connection] = connections(server)
    monitor = Process.monitor(connection)
    {other, _key} = WireClient.start_session!(server)
    sql = "select repeat('x', 100000) from generate_series(1, 1000)"
    :ok = :gen_tcp.send(greedy, WireClient.query_message(sql))

    assert_receive {:DOWN, ^monitor, :process, ^connection, {:shutdown, {:closed, reason}}},
                   10_000

    assert reason == %{
             "severity" => "LOG",
             "code" => "08006",
             "message" => "the client has not read for 200 ms"
           }

    assert :ok = Servers.await_connections(server, 1)
    assert {:ok, [["1"]]} = WireClient.query(other, "select 1")
    # What the system had taken for it, and no more.
    assert {:error, :closed} = receive_all(greedy)
  end

  test "a connection whose acceptor ends before it has handed over the socket ends too" do
    {:ok, listening} = :gen_tcp.listen(0, [:binary, active: false, ip: {127, 0, 0, 1}])
    {:ok, port} = :inet.port(listening)
    test = self()
    options = Options.new!([])
    supervisor = start_supervised!({DynamicSupervisor, strategy: :one_for_one})

    for handed_over? <- [false, true] do
      {:ok, client} = :gen_tcp.connect({127, 0, 0, 1}, port, [:binary, active: false])

      acceptor =
        spawn(fn ->
          {:ok, socket} = :gen_tcp.accept(listening)

          argument = %{
            acceptor: self(),
            program: nil,
            stage: :ready,
            options: options,
            frame_options: [],
            mark: HalfOpen.mark()
          }

          {:ok, connection} = DynamicSupervisor.start_child(supervisor, {Connection, argument})
          if handed_over?, do: :ok = :gen_tcp.controlling_process(socket, connection)
          send(test, {:accepted, connection})
          receive do: (:never -> :ok)
        end)

      assert_receive {:accepted, connection}, 5_000
      monitor = Process.monitor(connection)
      Process.exit(acceptor, :kill)
      assert_receive {:DOWN, ^monitor, :process, ^connection, {:shutdown, _reason}}, 5_000
      assert {:error, :closed} = :gen_tcp.recv(client, 0, 5_000)
    end
  end

  test "a client that sends more than is read is slowed down, and its bytes all arrive",
       %{server: server} do
    {client, _key} = WireClient.start_session!(server)
    # While the first query sleeps nothing reads what comes after it.
    queries = ["select pg_sleep(0.3)" | for(n <- 1..2_000, do: "select #{n}, '#{padding()}'")]

    sender =
      Task.async(fn -> :gen_tcp.send(client, Enum.map(queries, &WireClient.query_message/1)) end)

    for n <- 1..2_000, reduce: WireClient.receive_answer(client) do
      {:ok, _messages} ->
        assert {:ok, messages} = WireClient.receive_answer(client)
        expected = "#{n}"
        size = byte_size(expected)

        assert {?D, <<2::16, ^size::32, ^expected::binary-size(size), _::binary>>} =
                 List.keyfind(messages, ?D, 0)

        {:ok, messages}
    end

    assert :ok = Task.await(sender)
  end

  @tag :max_connections
  test "one connection more than max_connections gets 53300, and a place when one is free" do
    server = Servers.start!(mode: :shared, max_connections: 2)
    {first, _key} = WireClient.start_session!(server)
    {_second, _key} = WireClient.start_session!(server)

    third = WireClient.connect!(server)
    :ok = :gen_tcp.send(third, WireClient.startup_packet())
    assert {:ok, {?E, fields}} = WireClient.receive_message(third)
    assert WireClient.sqlstate(fields) == "53300"

    :ok = :gen_tcp.send(first, WireClient.terminate_message())
    assert {:error, :closed} = :gen_tcp.recv(first, 0, 10_000)
    assert :ok = Servers.await_connections(server, 1)
    assert {_fourth, _key} = WireClient.start_session!(server)
  end

  test "one connection's crash ends no other", %{server: server} do
    {one, _key} = WireClient.start_session!(server)
    [connection] = connections(server)
    {other, _key} = WireClient.start_session!(server)
    Process.exit(connection, :kill)
    assert {:error, :closed} = :gen_tcp.recv(one, 0, 10_000)
    assert {:ok, [["1"]]} = WireClient.query(other, "select 1")
    assert :ok = Servers.await_connections(server, 1)
  end

  @tag :scale
  @tag timeout: 120_000
  test "1,000 connections, each with its clone, take less than 100 kB of the VM each",
       %{server: server} do
    :erlang.garbage_collect()
    before = :erlang.memory(:total)

    clients =
      for n <- 1..1_000 do
        {client, _key} = WireClient.start_session!(server)
        {client, n}
      end

    for {client, n} <- clients do
      answer = "#{n}"
      assert {:ok, [[^answer]]} = WireClient.query(client, "select #{n}")
    end

    :erlang.garbage_collect()
    # Both ends of every socket are in this VM.
    assert div(:erlang.memory(:total) - before, 1_000) < 100_000
  end

  defp receive_all(client) do
    with {:ok, _bytes} <- :gen_tcp.recv(client, 0, 10_000), do: receive_all(client)
  end

  defp vanish(client) do
    # Without lingering, the close is a reset.
    :ok = :inet.setopts(client, linger: {true, 0})
    :gen_tcp.close(client)
  end

  defp padding, do: String.duplicate("p", 1_000)

  defp connections(server) do
    server
    |> Server.child(Connection)
    |> DynamicSupervisor.which_children()
    |> Enum.map(fn {_id, pid, _type, _modules} -> pid end)
  end

  # Until the client's socket takes nothing more.
  defp await_blocked_writer(connection) do
    case Process.info(connection, [:status, :current_stacktrace]) do
      [status: :waiting, current_stacktrace: [{:prim_inet, _send, _arity, _line} | _]] -> :ok
      _running -> await_blocked_writer(connection)
    end
  end
end
