defmodule PgliteEx.Handle do
  @moduledoc false
  # What has clusters that a test changes: a branch; a server or a gate, with one for each of its
  # connections, unless these are a branch's; a raw connection.

  alias PgliteEx.{Branch, Connection, Error, Frame, Gate, Parts, RawConnection, WasmPort}

  @type t :: PgliteEx.connection() | PgliteEx.server() | Branch.t()

  # How long the first connection is waited for, in milliseconds, and how often it is looked for. A pool
  # that is being started connects when it likes.
  @patience 5_000
  @pause 5

  @doc "Sends a request about each cluster, and waits for the replies."
  @spec request(t, String.t(), Frame.options()) :: :ok | {:error, Error.t()}
  def request(%Branch{server: server, name: name}, verb, options) do
    with {:ok, _reply} <- PgliteEx.request(server, verb, [{"cluster", name} | options]), do: :ok
  end

  def request(handle, verb, options) do
    with {:ok, identities} <- identities(handle) do
      identities
      |> Enum.uniq_by(&cluster/1)
      |> Enum.find_value(:ok, fn %{wasm_port: wasm_port, server: server} = identity ->
        options = [cluster(identity) | options]

        with {:ok, _reply} <- WasmPort.request(wasm_port, verb, options, server: server),
             do: nil
      end)
    end
  end

  # Several connections may be to one cluster, which is to travel only once.
  @spec cluster(Connection.identity()) :: {String.t(), String.t()}
  defp cluster(%{id: id, cluster: nil}), do: {"connection", Integer.to_string(id)}
  defp cluster(%{cluster: name}), do: {"cluster", name}

  defp identities(handle) do
    if Parts.registry(handle),
      do: await_connections(handle, System.monotonic_time(:millisecond) + @patience),
      else: raw_connection(handle)
  end

  defp raw_connection(connection) do
    case RawConnection.identity(connection) do
      {:ok, identity} -> {:ok, [identity]}
      {:error, :closed} -> {:error, %Error{code: "08003", message: "the connection is closed"}}
    end
  end

  defp await_connections(server, deadline) do
    cond do
      (identities = Gate.identities(server)) != [] ->
        {:ok, identities}

      System.monotonic_time(:millisecond) < deadline ->
        Process.sleep(@pause)
        await_connections(server, deadline)

      true ->
        {:error, %Error{code: "08003", message: "no connection is open"}}
    end
  end
end
