defmodule PgliteEx.LogTest do
  @moduledoc "What a running server logs."
  # It captures the log of the whole VM.
  use ExUnit.Case, async: false

  import ExUnit.CaptureLog

  alias PgliteEx.{BadProgram, Servers, WireClient}

  @failing "select * from no_such_table"

  # What is logged until the server has stopped, by which time it has passed on all that there was.
  defp log_of(options, sql) do
    capture_log(fn ->
      {:ok, server} = PgliteEx.start_link(options)
      {client, _key} = WireClient.start_session!(server)
      WireClient.query(client, sql)
      :gen_tcp.send(client, WireClient.terminate_message())
      {:error, :closed} = :gen_tcp.recv(client, 0, 10_000)
      PgliteEx.stop(server)
    end)
  end

  for mode <- [:shared, :isolated] do
    test "the error of a statement is not logged: its client gets it, in mode #{mode}" do
      refute log_of([mode: unquote(mode)], @failing) =~ "no_such_table"
    end

    test "the error of a statement is one event, with the statement, in mode #{mode}" do
      log = log_of([mode: unquote(mode), log_level: :debug], @failing)
      assert [event] = log |> String.split("[debug]") |> Enum.filter(&(&1 =~ "no_such_table"))

      assert event =~
               ~r/ERROR:  relation "no_such_table" does not exist.*\nSTATEMENT:  #{Regex.escape(@failing)}/s
    end
  end

  test "a warning that no client gets is logged" do
    log = log_of([mode: :isolated], "do $$ begin raise warning 'look here'; end $$")
    assert log =~ "[warning]"
    assert log =~ "look here"
  end

  @tag :tmp_dir
  test "advice of the program names options of this library", %{tmp_dir: directory} do
    program = "echo 'no room; name another with --cache-dir, or --data PATH' >&2; exit 1"
    Process.flag(:trap_exit, true)
    executable = BadProgram.write!(directory, program, [])

    assert {:error, {%PgliteEx.Error{message: message}, _}} =
             PgliteEx.start_link(executable: executable)

    assert message =~ "name another with cache_dir:, or data: PATH"
  end

  test "the hint for a template that is not there names the function that makes it" do
    server = Servers.start!(mode: :isolated)
    socket = WireClient.connect!(server)
    :ok = :gen_tcp.send(socket, WireClient.startup_packet(database: "not_there"))
    assert {:ok, {?E, fields}} = WireClient.receive_message(socket)
    assert fields =~ "PgliteEx.prepare/4"
  end
end
