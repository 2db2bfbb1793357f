defmodule PgliteEx.RandomTest do
  use PgliteEx.Case, async: true, server: :random_test_server

  alias PgliteEx.{Error, Gate, Random, Servers, WireClient}

  setup_all do
    %{server: start_supervised!({PgliteEx, name: :random_test_server, mode: :isolated})}
  end

  # Another clone of the template, and its gate.
  defp clone(server, number) do
    gate = start_supervised!({Gate, server: server}, id: {Gate, number})
    {gate, WireClient.start_session_with!(PgliteEx.connection_opts(gate))}
  end

  defp numbers(client) do
    {:ok, rows} =
      WireClient.query(
        client,
        "select random(), gen_random_uuid(), array_shuffle('{1,2,3,4,5,6}'::int[])"
      )

    rows
  end

  test "are those of the seed in every clone", %{server: server} do
    [{_, unseeded}, {one_gate, one}, {two_gate, two}] = for n <- 1..3, do: clone(server, n)
    assert :ok = Random.seed(one_gate, 42)
    assert :ok = Random.seed(two_gate, 42)
    first = numbers(one)
    assert numbers(two) == first
    assert numbers(unseeded) != first
    assert numbers(one) != first
    assert :ok = Random.seed(one_gate, 0xFFFF_FFFF_FFFF_FFFF)
    assert numbers(one) != first
    assert :ok = Random.seed(one_gate, 42)
    assert numbers(one) == first
  end

  test "are those of the seed in every branch", %{server: server} do
    rolled =
      for _ <- 1..2 do
        {:ok, branch} = PgliteEx.branch(server)
        :ok = Random.seed(branch, 42)
        opts = PgliteEx.connection_opts(branch)
        for _ <- 1..2, do: opts |> WireClient.start_session_with!() |> numbers()
      end

    assert [[one, other], [one, other]] = rolled
    assert one != other
  end

  test "a seed has 64 bits", %{pglite_gate: gate} do
    for seed <- [-1, 0x1_0000_0000_0000_0000, 1.0, "1"],
        do: assert_raise(FunctionClauseError, fn -> Random.seed(gate, seed) end)
  end

  test "a server in :shared mode gives no leave" do
    {:ok, connection} = PgliteEx.open(Servers.start!())
    :ok = PgliteEx.send(connection, WireClient.startup_packet())
    assert {:error, error} = Random.seed(connection, 1)

    assert %Error{code: "42501", message: "permission denied to seed random numbers"} = error
    assert error.hint =~ ":isolated"
  end
end
