defmodule PgliteEx.ClockTest do
  use PgliteEx.Case, async: true, server: :clock_test_server

  alias PgliteEx.{Clock, Error, Gate, Servers, Template, WireClient}

  setup_all do
    %{server: start_supervised!({PgliteEx, name: :clock_test_server, mode: :isolated})}
  end

  defp value(client, sql) do
    {:ok, [[value]]} = WireClient.query(client, sql)
    value
  end

  defp shown(client), do: value(client, "select to_char(clock_timestamp(), 'YYYY-MM-DD HH24:MI')")

  describe "the clock of a gate's cluster" do
    setup %{connection_opts: options}, do: %{client: WireClient.start_session_with!(options)}

    test "stands still to the microsecond", %{pglite_gate: gate, client: client} do
      assert :ok = Clock.freeze(gate, ~U[2040-02-29 12:34:56.123457Z])
      assert value(client, "select now()") == "2040-02-29 12:34:56.123457+00"
      assert value(client, "select age(timestamp '2000-02-29')") == "40 years"
      # It takes real time.
      assert value(client, "select pg_sleep(0.01)") == ""
      assert value(client, "select clock_timestamp()") == "2040-02-29 12:34:56.123457+00"
    end

    test "goes on from where it is set, and back", %{pglite_gate: gate, client: client} do
      assert :ok = Clock.travel(gate, ~U[2031-01-01 00:00:30Z])
      assert shown(client) == "2031-01-01 00:00"
      [one, other] = for _ <- 1..2, do: value(client, "select clock_timestamp()")
      assert one < other
      assert :ok = Clock.travel_by(gate, 30, :day)
      assert shown(client) == "2031-01-31 00:00"
      assert :ok = Clock.travel_by(gate, -90)
      assert shown(client) =~ "2031-01-30 23:5"
      assert :ok = Clock.freeze(gate)
      assert value(client, "select clock_timestamp() = clock_timestamp()") == "t"
      assert :ok = Clock.back(gate)
      assert {:ok, time, 0} = DateTime.from_iso8601(value(client, "select now()") <> ":00")
      assert abs(DateTime.diff(DateTime.utc_now(), time)) < 60
    end

    test "is of the time zone of its time", %{pglite_gate: gate, client: client} do
      berlin = %{~U[2030-06-01 14:00:00Z] | utc_offset: 3600, std_offset: 3600, zone_abbr: "CEST"}
      assert :ok = Clock.freeze(gate, %{berlin | time_zone: "Europe/Berlin"})
      assert shown(client) == "2030-06-01 12:00"
    end

    test "is refused a time that Postgres clients do not have", %{pglite_gate: gate} do
      assert {:error, %Error{code: "22008"}} = Clock.travel(gate, ~U[-0001-01-01 00:00:00Z])
      assert {:error, %Error{code: "22008"}} = Clock.travel_by(gate, 4_000_000, :day)
      assert_raise FunctionClauseError, fn -> Clock.travel_by(gate, 1, :fortnight) end
    end
  end

  test "a gate's first connection is waited for", %{pglite_gate: gate, connection_opts: options} do
    setting = Task.async(fn -> Clock.freeze(gate, ~U[2030-01-01 00:00:00Z]) end)
    client = WireClient.start_session_with!(options)
    assert :ok = Task.await(setting)
    assert shown(client) == "2030-01-01 00:00"
  end

  test "a gate without connections has no clock", %{server: server} do
    gate = start_supervised!({Gate, server: server}, id: :unused_gate)
    assert {:error, %Error{code: "08003"}} = Clock.back(gate)
  end

  test "a raw connection has one, which stays set when its cluster is reset", %{server: server} do
    {:ok, connection} = PgliteEx.open(server)
    # Before there is a session.
    setting = Task.async(fn -> Clock.freeze(connection, ~U[2030-01-01 00:00:00Z]) end)
    :ok = PgliteEx.send(connection, WireClient.startup_packet())
    assert :ok = Task.await(setting)
    ask(connection)
    assert ask(connection) =~ "2030-01-01"
    assert :ok = Template.reset(connection)
    assert ask(connection) =~ "2030-01-01"
    :ok = PgliteEx.close(connection)
    assert {:error, %Error{code: "08003"}} = Clock.back(connection)
  end

  defp ask(connection) do
    :ok = PgliteEx.send(connection, WireClient.query_message("select now()::date"))
    receive_answer(connection, "")
  end

  defp receive_answer(connection, bytes) do
    if WireClient.ready?(bytes) do
      bytes
    else
      assert_receive {:pglite_ex, ^connection, {:data, more}}, 5_000
      receive_answer(connection, bytes <> more)
    end
  end

  test "a server's clocks are those of all its connections" do
    server = Servers.start!(mode: :isolated)
    {client, _key} = WireClient.start_session!(server)
    {:ok, connection} = PgliteEx.open(server)
    :ok = PgliteEx.send(connection, WireClient.startup_packet())
    receive_answer(connection, "")
    assert :ok = Clock.freeze(server, ~U[2030-01-01 00:00:00Z])
    assert shown(client) == "2030-01-01 00:00"
    assert ask(connection) =~ "2030-01-01"
  end

  describe "the clock of a branch" do
    setup %{server: server} do
      {:ok, branch} = PgliteEx.branch(server)
      %{branch: branch}
    end

    test "is that of all its sessions, and can be set before there are any", %{branch: branch} do
      assert :ok = Clock.freeze(branch, ~U[2030-01-01 00:00:00Z])

      clients =
        for _ <- 1..3, do: WireClient.start_session_with!(PgliteEx.connection_opts(branch))

      assert Enum.map(clients, &shown/1) == List.duplicate("2030-01-01 00:00", 3)
      assert :ok = Clock.travel_by(branch, 1, :day)
      assert Enum.map(clients, &shown/1) == List.duplicate("2030-01-02 00:00", 3)
    end

    test "travels once for a gate, whatever the number of connections", %{branch: branch} do
      gate = start_supervised!({Gate, server: branch}, id: :gate_of_branch)

      clients = for _ <- 1..3, do: WireClient.start_session_with!(PgliteEx.connection_opts(gate))

      assert :ok = Clock.freeze(gate, ~U[2030-01-01 00:00:00Z])
      assert :ok = Clock.travel_by(gate, 1, :day)
      assert Enum.map(clients, &shown/1) == List.duplicate("2030-01-02 00:00", 3)
    end

    test "is its own", %{branch: branch, server: server} do
      {:ok, other} = PgliteEx.branch(server)
      assert :ok = Clock.freeze(branch, ~U[2030-01-01 00:00:00Z])
      client = WireClient.start_session_with!(PgliteEx.connection_opts(other))
      refute shown(client) == "2030-01-01 00:00"
      :ok = PgliteEx.drop(branch)
      assert {:error, %Error{code: "3D000"}} = Clock.back(branch)
    end
  end

  test "a server in :shared mode gives no leave" do
    server = Servers.start!()
    {:ok, connection} = PgliteEx.open(server)
    :ok = PgliteEx.send(connection, WireClient.startup_packet())
    assert {:error, error} = Clock.freeze(connection)
    assert %Error{code: "42501", message: "permission denied to set the clock"} = error
    assert error.hint =~ ":isolated"
  end
end
