defmodule PgliteEx.Listener do
  @moduledoc false
  # The process that owns a server's listening socket.
  #
  # It starts before the program and outlives it: the address stays the same when the program is
  # restarted, also with port 0, and clients that connect meanwhile wait in the socket's queue.

  use GenServer

  alias PgliteEx.{Error, Options, Parts}

  # Connections that wait to be accepted: enough for a pool of hundreds that starts at once.
  @backlog 1_024
  # Bytes of one delivery from a client's socket.
  @receive_buffer 65_536

  @doc "Starts listening, as a part of the server or gate with this registry."
  @spec start_link({Registry.registry(), Options.t()}) :: GenServer.on_start()
  def start_link({registry, %Options{} = options}),
    do: GenServer.start_link(__MODULE__, options, name: Parts.name(registry, __MODULE__))

  @doc "The socket on which connections are accepted."
  @spec socket(pid) :: :gen_tcp.socket()
  def socket(listener), do: GenServer.call(listener, :socket)

  @doc "The address that clients connect to, with the real port."
  @spec address(pid) :: Options.listen()
  def address(listener), do: GenServer.call(listener, :address)

  @impl GenServer
  def init(%Options{listen: listen} = options) do
    # So that `terminate/2` runs, and removes the file of a unix socket.
    Process.flag(:trap_exit, true)

    with :ok <- prepare_path(listen),
         {:ok, socket} <- listen(options),
         {:ok, address} <- real_address(listen, socket) do
      {:ok, %{socket: socket, address: address}}
    else
      {:error, posix} -> {:stop, listen_error(listen, posix)}
    end
  end

  @impl GenServer
  def handle_call(:socket, _from, state), do: {:reply, state.socket, state}
  def handle_call(:address, _from, state), do: {:reply, state.address, state}

  @impl GenServer
  def handle_info({:EXIT, socket, reason}, %{socket: socket} = state),
    do: {:stop, {:listening_socket_closed, reason}, state}

  # The registry, which would not be found again: the supervisor restarts it and this process.
  def handle_info({:EXIT, pid, reason}, state) when is_pid(pid), do: {:stop, reason, state}

  def handle_info(_stray_message, state), do: {:noreply, state}

  @impl GenServer
  def terminate(_reason, state) do
    :gen_tcp.close(state.socket)
    with {:local, path} <- state.address, do: File.rm(path)
  end

  defp listen(%Options{listen: {:local, _path} = address} = options),
    do: :gen_tcp.listen(0, [ifaddr: address] ++ socket_options(options))

  defp listen(%Options{listen: {host, port}} = options) do
    family = if tuple_size(host) == 8, do: [:inet6], else: []
    own = [ip: host, reuseaddr: true, nodelay: true]
    :gen_tcp.listen(port, family ++ own ++ socket_options(options))
  end

  # Accepted sockets have the same options.
  defp socket_options(options) do
    [
      :binary,
      packet: :raw,
      active: false,
      backlog: @backlog,
      buffer: @receive_buffer,
      keepalive: true,
      send_timeout: options.send_timeout,
      send_timeout_close: true
    ]
  end

  defp real_address({:local, path}, _socket), do: {:ok, {:local, path}}

  defp real_address({host, _port}, socket) do
    with {:ok, port} <- :inet.port(socket), do: {:ok, {host, port}}
  end

  # A VM that was killed leaves the file of its socket behind; connections to it are refused.
  defp prepare_path({:local, path} = address) do
    with :ok <- File.mkdir_p(Path.dirname(path)) do
      case :gen_tcp.connect(address, 0, [:binary, active: false]) do
        {:ok, socket} ->
          :gen_tcp.close(socket)
          {:error, :eaddrinuse}

        {:error, :econnrefused} ->
          File.rm(path)

        {:error, _no_file} ->
          :ok
      end
    end
  end

  defp prepare_path(_tcp), do: :ok

  defp listen_error(listen, posix) do
    %Error{
      code: posix,
      message:
        "cannot listen on #{describe(listen)}: #{:inet.format_error(posix)}; " <>
          "choose another address with the option listen:"
    }
  end

  defp describe({:local, path}), do: path
  defp describe({host, port}), do: "#{:inet.ntoa(host)} port #{port}"
end
