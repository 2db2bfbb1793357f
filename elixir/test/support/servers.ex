defmodule PgliteEx.Servers do
  @moduledoc "Starts servers for tests, which end with the test or the module that started them."

  alias PgliteEx.{Options, Parts, Readiness, Reporter, WasmPort}

  @doc "Starts a server under the test's supervisor, which does not start it again."
  def start!(options \\ []) do
    # A name of its own for every server makes a child id of its own.
    id = {PgliteEx, make_ref()}
    spec = Supervisor.child_spec({PgliteEx, options}, id: id, restart: :temporary)
    ExUnit.Callbacks.start_supervised!(spec)
  end

  @doc """
  Starts a port's owner, linked to the caller, with those parts of a server that it needs. Returns it
  and the registry.
  """
  def start_port!(options) do
    options = Options.new!(options)
    registry = Module.concat(__MODULE__, "Port#{System.unique_integer([:positive])}")
    reporter = Reporter.new(Parts.name(registry, Reporter))

    for child <- [{Parts, {registry, options}}, {Reporter, reporter}, {Readiness, registry}] do
      id = {elem(child, 0), registry}
      ExUnit.Callbacks.start_supervised!(Supervisor.child_spec(child, id: id))
    end

    {:ok, wasm_port} =
      WasmPort.start_link(%{registry: registry, options: options, reporter: reporter})

    {wasm_port, registry}
  end

  @doc "Waits until the program has dropped a branch."
  def await_gone(branch, deadline \\ System.monotonic_time(:millisecond) + 10_000) do
    case PgliteEx.stats(branch) do
      {:error, %PgliteEx.Error{code: "3D000"}} ->
        :ok

      {:ok, stats} ->
        if System.monotonic_time(:millisecond) > deadline,
          do: raise("the branch is still there: #{inspect(stats)}")

        await_gone(branch, deadline)
    end
  end

  @doc "Waits until the program reports no connections other than `others`."
  def await_connections(server, count, deadline \\ System.monotonic_time(:millisecond) + 10_000) do
    {:ok, %{"connections" => connections}} = PgliteEx.stats(server)

    cond do
      connections == count -> :ok
      System.monotonic_time(:millisecond) < deadline -> await_connections(server, count, deadline)
      true -> {:error, connections}
    end
  end
end
