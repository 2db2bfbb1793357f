defmodule PgliteEx.SocketServer do
  @moduledoc """
  The process that accepts clients and gives each one a `PgliteEx.Connection` of its own.

  It asks its supervisors once for the processes that it needs. They are started before it, and
  it is restarted whenever one of them is, so the process ids that it holds are never stale.
  """

  use Task, restart: :permanent

  alias PgliteEx.{Connection, Listener, Options, Server, WasmPort}

  # How long to wait when there are no file descriptors left, in milliseconds.
  @descriptors_exhausted_pause 100

  @typedoc """
  The supervisor with the listener and the connections, the one with the program, and what
  connections are told of their server.
  """
  @type context :: %{supervisor: pid, server: Supervisor.supervisor(), options: Options.t()}

  @doc "Starts accepting clients."
  @spec start_link(context) :: {:ok, pid}
  def start_link(context), do: Task.start_link(__MODULE__, :run, [context])

  @doc false
  @spec run(context) :: no_return
  def run(%{supervisor: supervisor, server: server, options: options}) do
    listening = supervisor |> Server.child(Listener) |> Listener.socket()
    connections = Server.child(supervisor, Connection)

    case Server.child(server, WasmPort) do
      nil -> exit(:shutdown)
      wasm_port -> accept(listening, connections, {wasm_port, options})
    end
  end

  defp accept(listening, connections, argument) do
    case :gen_tcp.accept(listening) do
      {:ok, socket} ->
        hand_over(socket, connections, argument)

      {:error, reason} when reason in [:emfile, :enfile] ->
        Process.sleep(@descriptors_exhausted_pause)

      {:error, :closed} ->
        exit(:shutdown)

      {:error, _one_clients_failure} ->
        :ok
    end

    accept(listening, connections, argument)
  end

  defp hand_over(socket, connections, argument) do
    case DynamicSupervisor.start_child(connections, {Connection, argument}) do
      {:ok, pid} ->
        # A client that is gone already is noticed by its connection.
        _ = :gen_tcp.controlling_process(socket, pid)
        Connection.serve(pid, socket)

      {:error, _not_started} ->
        :gen_tcp.close(socket)
    end
  end
end
