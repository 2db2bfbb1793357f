defmodule PgliteEx.Servers do
  @moduledoc "Starts servers for tests, which end with the test or the module that started them."

  @doc "Starts a server under the test's supervisor."
  def start!(options \\ []) do
    # A name of its own for every server makes a child id of its own.
    id = {PgliteEx, make_ref()}
    ExUnit.Callbacks.start_supervised!(Supervisor.child_spec({PgliteEx, options}, id: id))
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
