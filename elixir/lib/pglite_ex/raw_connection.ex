defmodule PgliteEx.RawConnection do
  @moduledoc false
  # A connection without a socket: the bytes of the Postgres protocol as messages.
  #
  # The process behind `PgliteEx.open/2`. It belongs to the process that opened it and ends with
  # it. With `active: :once` the owner gets one message with data, and the next one after it has
  # asked for it; with `active: true` data is delivered as it arrives, as by a port.

  use GenServer, restart: :temporary, shutdown: 300

  alias PgliteEx.{Channel, Connection, Error, Frame, Parts}

  @type active :: true | :once | false

  @typedoc "The program, the server's name, the options of the `O` frame, the owner, its `active`."
  @type argument :: %{
          wasm_port: pid,
          server: nil | GenServer.name(),
          frame_options: Frame.options(),
          owner: pid,
          active: active
        }

  @doc false
  @spec start_link(argument) :: GenServer.on_start()
  def start_link(argument), do: GenServer.start_link(__MODULE__, argument)

  @doc """
  Opens a connection of the program of `wasm_port`, as a part of the server with this registry.

  `argument` lacks only `:wasm_port`.
  """
  @spec open(Registry.registry(), pid, map) :: {:ok, pid} | {:error, Error.t()}
  def open(registry, wasm_port, argument) do
    argument = Map.put(argument, :wasm_port, wasm_port)

    registry
    |> Parts.whereis(Connection)
    |> DynamicSupervisor.start_child({__MODULE__, argument})
  catch
    # The server ends.
    :exit, _ended -> {:error, Error.from_reason(Channel.program_gone())}
  end

  @doc "Sends bytes; returns when the program's window has admitted them."
  @spec send(pid, iodata) :: :ok | {:error, :closed}
  def send(connection, bytes), do: call(connection, {:send, IO.iodata_to_binary(bytes)})

  @doc "Sets how data is delivered from now on."
  @spec activate(pid, active) :: :ok | {:error, :closed}
  def activate(connection, active), do: call(connection, {:activate, active})

  @doc "The program that serves the connection, and the connection's number in it."
  @spec identity(pid) :: {:ok, Connection.identity()} | {:error, :closed}
  def identity(connection) do
    with %{} = identity <- call(connection, :identity), do: {:ok, identity}
  end

  @doc "Closes the connection."
  @spec close(pid) :: :ok
  def close(connection) do
    GenServer.stop(connection)
  catch
    :exit, _already_closed -> :ok
  end

  @impl GenServer
  def init(%{wasm_port: wasm_port, owner: owner} = argument) do
    # So that `terminate/2` runs, which tells the owner why its connection ends.
    Process.flag(:trap_exit, true)

    case Channel.open(wasm_port, argument.frame_options) do
      {:ok, channel} ->
        {:ok,
         %{
           wasm_port: wasm_port,
           server: argument.server,
           cluster: Map.new(argument.frame_options)["cluster"],
           channel: channel,
           owner: owner,
           owner_monitor: Process.monitor(owner),
           active: argument.active,
           # Chunks that have not been delivered, newest first, and their size.
           undelivered: {[], 0},
           # The callers whose bytes the window does not admit yet, and those bytes.
           senders: :queue.new()
         }}

      {:error, %Error{} = error} ->
        {:stop, error}
    end
  end

  @impl GenServer
  def handle_call({:send, bytes}, from, state) do
    {:noreply, admit(%{state | senders: :queue.in({from, bytes}, state.senders)})}
  end

  def handle_call({:activate, active}, _from, state),
    do: {:reply, :ok, deliver(%{state | active: active})}

  def handle_call(:identity, _from, state) do
    identity =
      state |> Map.take([:wasm_port, :server, :cluster]) |> Map.put(:id, state.channel.id)

    {:reply, identity, state}
  end

  @impl GenServer
  def handle_info({:DOWN, monitor, :process, _pid, _reason}, %{owner_monitor: monitor} = state),
    do: {:stop, :normal, state}

  def handle_info(message, state) do
    case Channel.handle(state.channel, message) do
      {:data, chunks, size, channel} ->
        {waiting, waiting_size} = state.undelivered
        undelivered = {chunks ++ waiting, waiting_size + size}
        {:noreply, deliver(%{state | channel: channel, undelivered: undelivered})}

      {:window, channel} ->
        {:noreply, admit(%{state | channel: channel})}

      {:closed, reason} ->
        {:stop, {:shutdown, {:closed, reason}}, state}

      :unknown ->
        {:noreply, state}
    end
  end

  @impl GenServer
  # Closed by its owner, or its owner has ended: no message is needed.
  def terminate(:normal, _state), do: :ok

  def terminate(reason, state) do
    state = deliver(%{state | active: true})
    Kernel.send(state.owner, {:pglite_ex, self(), {:closed, Channel.closing_reason(reason)}})
  end

  # Sends the bytes of waiting callers, one after the other, as far as the window admits them.
  defp admit(state) do
    with true <- Channel.writable?(state.channel),
         {{:value, {from, bytes}}, senders} <- :queue.out(state.senders) do
      admit_next(%{state | channel: Channel.send(state.channel, bytes)}, from, senders)
    else
      _no_sender_or_no_window -> state
    end
  end

  # A caller whose bytes did not fit stays at the head of the queue, with nothing left to send.
  defp admit_next(state, from, senders) do
    if Channel.writable?(state.channel) do
      GenServer.reply(from, :ok)
      admit(%{state | senders: senders})
    else
      %{state | senders: :queue.in_r({from, <<>>}, senders)}
    end
  end

  defp deliver(%{undelivered: {_chunks, size}, active: active} = state)
       when size == 0 or active == false,
       do: state

  defp deliver(%{undelivered: {newest_first, size}} = state) do
    bytes = newest_first |> Enum.reverse() |> IO.iodata_to_binary()
    Kernel.send(state.owner, {:pglite_ex, self(), {:data, bytes}})

    %{
      state
      | undelivered: {[], 0},
        channel: Channel.consumed(state.channel, size),
        active: if(state.active == :once, do: false, else: state.active)
    }
  end

  defp call(connection, request) do
    GenServer.call(connection, request, :infinity)
  catch
    :exit, _closed -> {:error, :closed}
  end
end
