defmodule PgliteEx.RawConnectionTest do
  use ExUnit.Case, async: true

  alias PgliteEx.{Servers, WireClient}

  setup_all do
    %{server: Servers.start!(mode: :isolated)}
  end

  test "a session is startup packet, messages and answers", %{server: server} do
    {:ok, connection} = PgliteEx.open(server)
    :ok = PgliteEx.send(connection, WireClient.startup_packet())
    assert <<?R, 8::32, 0::32, _rest::binary>> = receive_answer(connection)

    :ok = PgliteEx.send(connection, WireClient.query_message("select 'raw'"))
    assert receive_answer(connection) =~ "raw"
    :ok = PgliteEx.close(connection)
    assert {:error, :closed} = PgliteEx.send(connection, "too late")
  end

  test "the owner is told when the session ends, and why", %{server: server} do
    {:ok, connection} = PgliteEx.open(server)
    :ok = PgliteEx.send(connection, WireClient.startup_packet())
    receive_answer(connection)
    :ok = PgliteEx.send(connection, WireClient.terminate_message())
    assert_receive {:pglite_ex, ^connection, {:closed, %{"code" => "00000"}}}, 5_000
  end

  test "a connection ends with its owner", %{server: server} do
    test = self()

    {owner, monitor} =
      spawn_monitor(fn ->
        {:ok, connection} = PgliteEx.open(server)
        send(test, {:opened, connection})
      end)

    assert_receive {:opened, connection}
    assert_receive {:DOWN, ^monitor, :process, ^owner, :normal}
    monitor = Process.monitor(connection)
    assert_receive {:DOWN, ^monitor, :process, ^connection, _reason}, 5_000
  end

  test "with active: :once the next message comes when it is asked for", %{server: server} do
    {:ok, connection} = PgliteEx.open(server, active: :once)
    :ok = PgliteEx.send(connection, WireClient.startup_packet())
    receive_answer(connection)

    sql = "select repeat('x', 1000) from generate_series(1, 2000)"
    :ok = PgliteEx.send(connection, WireClient.query_message(sql))
    refute_received {:pglite_ex, ^connection, _anything}

    :ok = PgliteEx.activate(connection)
    assert_receive {:pglite_ex, ^connection, {:data, first}}, 5_000
    # A message that nobody asked for would be here before the answer to this call.
    :ok = PgliteEx.activate(connection, false)
    refute_received {:pglite_ex, ^connection, {:data, _unasked}}

    :ok = PgliteEx.activate(connection, true)
    rest = receive_answer(connection)
    assert byte_size(first) + byte_size(rest) > 2_000_000
  end

  test "a sender waits for the window, and everything arrives", %{server: server} do
    {:ok, connection} = PgliteEx.open(server)
    :ok = PgliteEx.send(connection, WireClient.startup_packet())
    receive_answer(connection)

    text = String.duplicate("0123456789", 200_000)
    :ok = PgliteEx.send(connection, WireClient.query_message("select length('#{text}')"))
    assert receive_answer(connection) =~ "2000000"
  end

  test "several senders do not mix their bytes", %{server: server} do
    {:ok, connection} = PgliteEx.open(server)
    :ok = PgliteEx.send(connection, WireClient.startup_packet())
    receive_answer(connection)
    # As with any PostgreSQL, who does not read answers cannot send for ever.
    :ok = PgliteEx.activate(connection, true)

    1..20
    |> Enum.map(fn n ->
      text = String.duplicate("#{rem(n, 10)}", 100_000)

      Task.async(fn -> PgliteEx.send(connection, WireClient.query_message("select '#{text}'")) end)
    end)
    |> Task.await_many(30_000)

    :ok = PgliteEx.send(connection, WireClient.query_message("select 'the ' || 'end'"))
    answers = receive_until(connection, "the end")
    # What arrives mixed up is no statement, or breaks the protocol.
    assert length(:binary.matches(answers, "SELECT 1\0")) in 20..21
    refute answers =~ "ERROR"
  end

  test "its mode can differ from the server's", %{server: server} do
    {:ok, connection} = PgliteEx.open(server, mode: :isolated)
    :ok = PgliteEx.send(connection, WireClient.startup_packet())
    assert <<?R, 8::32, 0::32, _rest::binary>> = receive_answer(connection)
  end

  for options <- [[passive: true], [active: :twice], [mode: :fast]] do
    test "the option #{inspect(options)} is refused", %{server: server} do
      assert_raise ArgumentError, fn -> PgliteEx.open(server, unquote(options)) end
    end
  end

  defp receive_until(connection, end_mark, bytes \\ <<>>) do
    if bytes =~ end_mark do
      bytes
    else
      assert_receive {:pglite_ex, ^connection, {:data, more}}, 10_000
      receive_until(connection, end_mark, bytes <> more)
    end
  end

  defp receive_answer(connection, bytes \\ <<>>) do
    if WireClient.ready?(bytes) do
      bytes
    else
      _ = PgliteEx.activate(connection, :once)
      assert_receive {:pglite_ex, ^connection, {:data, more}}, 10_000
      receive_answer(connection, bytes <> more)
    end
  end
end
