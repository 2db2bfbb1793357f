defmodule PgliteEx.SocketServer do
  @moduledoc false
  # The process that accepts clients and gives each one a `PgliteEx.Connection` of its own.

  use Task, restart: :permanent

  require Logger

  alias PgliteEx.{Connection, HalfOpen, Listener, Options, Parts, Readiness}

  # How long to wait when descriptors, ports of the VM or memory are exhausted, in milliseconds.
  @exhausted_pause 100

  # Failures of the one connection that was to be accepted. Linux passes on errors of the network that
  # are pending on it, and says to treat them like EAGAIN; EPERM is a firewall's (accept(2)).
  @client_errors [
    :econnaborted,
    :eagain,
    :eintr,
    :enetdown,
    :enetunreach,
    :ehostdown,
    :ehostunreach,
    :enonet,
    :enoprotoopt,
    :eopnotsupp,
    :eperm,
    :eproto,
    :etimedout
  ]

  # Of the process, the system, or the VM (`:system_limit`); they pass when others give something back.
  @exhausted [:emfile, :enfile, :enobufs, :enomem, :system_limit]

  @typedoc """
  The registry with the listener and the connections, the server whose program serves them, at which
  stage, that server's options, and those of the frames that open connections.
  """
  @type context :: %{
          registry: Registry.registry(),
          server: PgliteEx.server(),
          stage: Readiness.stage(),
          options: Options.t(),
          frame_options: PgliteEx.Frame.options()
        }

  @doc "Starts accepting clients."
  @spec start_link(context) :: {:ok, pid}
  def start_link(context), do: Task.start_link(__MODULE__, :run, [context])

  @doc false
  @spec run(context) :: no_return
  def run(%{registry: registry} = context) do
    listening = registry |> Parts.whereis(Listener) |> Listener.socket()
    accept(listening, context, [], false)
  end

  @doc """
  Whose fault it is that a connection could not be accepted.

    * `:client` – that of the one connection: the next one is accepted;
    * `:exhausted` – something is exhausted that comes back: accepting is tried again;
    * `:listener` – the listening socket is of no use any more.

  ## Examples

      iex> PgliteEx.SocketServer.fault(:econnaborted)
      :client

      iex> PgliteEx.SocketServer.fault(:emfile)
      :exhausted

      iex> PgliteEx.SocketServer.fault(:closed)
      :listener
  """
  @spec fault(:closed | :system_limit | :inet.posix()) :: :client | :exhausted | :listener
  def fault(reason) when reason in @client_errors, do: :client
  def fault(reason) when reason in @exhausted, do: :exhausted
  def fault(_reason), do: :listener

  defp accept(listening, context, half_open, exhausted?) do
    case :gen_tcp.accept(listening) do
      {:ok, socket} ->
        if exhausted?, do: log(:info, "clients are accepted again", context)
        accept(listening, context, hand_over(socket, half_open, context), false)

      {:error, reason} ->
        accept(listening, context, half_open, cope(fault(reason), reason, context, exhausted?))
    end
  end

  # Whether something is exhausted now.
  defp cope(:client, _reason, _context, exhausted?), do: exhausted?

  defp cope(:exhausted, reason, context, exhausted?) do
    unless exhausted? do
      log(:warning, "no client can be accepted for now: #{describe(reason)}", context)
    end

    Process.sleep(@exhausted_pause)
    true
  end

  defp cope(:listener, reason, context, _exhausted?) do
    log(:error, "the listening socket cannot be used any more: #{describe(reason)}", context)
    exit({:shutdown, {:accept, reason}})
  end

  # Returns the connections that are half-open then.
  defp hand_over(socket, half_open, %{registry: registry, server: server} = context) do
    mark = HalfOpen.mark()

    argument =
      context
      |> Map.take([:stage, :options, :frame_options])
      |> Map.merge(%{acceptor: self(), program: Parts.registry(server), mark: mark})

    connections = Parts.whereis(registry, Connection)

    case DynamicSupervisor.start_child(connections, {Connection, argument}) do
      {:ok, pid} ->
        # A client that is gone already is noticed by its connection.
        _ = :gen_tcp.controlling_process(socket, pid)
        Connection.serve(pid, socket)
        {half_open, too_many} = HalfOpen.enter(half_open, pid, mark)
        Enum.each(too_many, &Connection.crowd_out/1)
        half_open

      {:error, _not_started} ->
        :gen_tcp.close(socket)
        half_open
    end
  end

  defp log(level, text, %{options: options}),
    do: Logger.log(level, text, domain: [:pglite_ex], server: options.name)

  defp describe(:closed), do: "it is closed"
  defp describe(:system_limit), do: "the VM has no port left (erl +Q)"
  defp describe(posix), do: List.to_string(:inet.format_error(posix))
end
