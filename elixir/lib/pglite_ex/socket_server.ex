defmodule PgliteEx.SocketServer do
  @moduledoc """
  The process that accepts clients and gives each one a `PgliteEx.Connection` of its own.

  It asks its supervisor once for the processes that it needs. They are started before it, and
  it is restarted whenever one of them is, so the process ids that it holds are never stale. The
  program of a `PgliteEx.Gate` is another supervisor's, and restarted without the gate: it is asked
  for again for every client.
  """

  use Task, restart: :permanent

  alias PgliteEx.{Connection, Listener, Options, Server, WasmPort}

  # How long to wait when there are no file descriptors or no ports of the VM left, in
  # milliseconds.
  @exhausted_pause 100

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
    accept(listening, connections, program(supervisor, server), options)
  end

  # A function that finds the program, or `nil` when there is none.
  defp program(server, server) do
    wasm_port = Server.child(server, WasmPort)
    fn -> wasm_port end
  end

  defp program(_gate, server) do
    fn ->
      try do
        Server.child(server, WasmPort)
      catch
        :exit, _server_gone -> nil
      end
    end
  end

  defp accept(listening, connections, program, options) do
    case :gen_tcp.accept(listening) do
      {:ok, socket} ->
        hand_over(socket, connections, {program.(), options})

      {:error, reason} when reason in [:emfile, :enfile, :system_limit] ->
        Process.sleep(@exhausted_pause)

      {:error, :closed} ->
        exit(:shutdown)

      {:error, _one_clients_failure} ->
        :ok
    end

    accept(listening, connections, program, options)
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
