defmodule PgliteEx.Handle do
  @moduledoc false
  # What has isolated clusters: a server or a gate, with one for each of its connections, or a raw
  # connection.

  alias PgliteEx.{Error, Frame, Gate, Parts, RawConnection, WasmPort}

  # How long the first connection is waited for, in milliseconds, and how often it is looked for. A pool
  # that is being started connects when it likes.
  @patience 5_000
  @pause 5

  @doc "Sends a request about the cluster of each connection, and waits for the replies."
  @spec request(PgliteEx.connection() | PgliteEx.server(), String.t(), Frame.options()) ::
          :ok | {:error, Error.t()}
  def request(handle, verb, options) do
    with {:ok, identities} <- identities(handle) do
      Enum.find_value(identities, :ok, fn %{wasm_port: wasm_port, id: id, server: server} ->
        options = [{"connection", Integer.to_string(id)} | options]

        with {:ok, _reply} <- WasmPort.request(wasm_port, verb, options, server: server),
             do: nil
      end)
    end
  end

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
