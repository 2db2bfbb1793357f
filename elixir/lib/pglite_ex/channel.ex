defmodule PgliteEx.Channel do
  @moduledoc false
  # The owner process' side of one connection to the program: frames and the windows of both
  # directions, without a socket.
  #
  # A plain value, kept in the state of its owner, the process that opened it. The program's frames
  # arrive in the owner's mailbox, and the connection is closed when the owner ends.
  #
  #   * To the program: `send/2` writes as much as the program's window admits and keeps the rest,
  #     until the window grows; `writable?/1` says whether everything is written. The owner reads
  #     no more input until it is.
  #   * From the program: `consumed/2` tells the program that bytes have been processed, in
  #     portions of half a window. The program sends no more than the window, so the owner's
  #     mailbox never has more than one window of bytes.

  alias PgliteEx.{Error, Frame, WasmPort}

  @enforce_keys [:id, :port, :monitor, :window, :max_payload, :credit, :allowance]
  defstruct [
    :id,
    :port,
    :monitor,
    :window,
    :max_payload,
    :credit,
    :allowance,
    consumed: 0,
    kept: <<>>
  ]

  @type t :: %__MODULE__{
          id: Frame.id(),
          port: port,
          monitor: reference,
          window: pos_integer,
          max_payload: pos_integer,
          # Bytes that may be sent to the program now.
          credit: non_neg_integer,
          # Bytes that the program may send now.
          allowance: non_neg_integer,
          # Processed bytes that were not reported to the program yet.
          consumed: non_neg_integer,
          # Input that the program's window does not admit yet.
          kept: binary
        }

  @typedoc "Why a connection ended: `severity`, `code` (SQLSTATE) and `message`."
  @type reason :: %{String.t() => String.t()}

  @doc """
  Opens a connection that belongs to the calling process.

  The error is `57P01` when the program has ended, or `57P03` when it is not ready. Other errors
  come later, with the program's answer.
  """
  @spec open(wasm_port :: pid, Frame.options()) :: {:ok, t} | {:error, Error.t()}
  def open(wasm_port, options \\ []) do
    with {:ok, registration} <- WasmPort.register(wasm_port),
         do: {:ok, open(wasm_port, registration, options)}
  catch
    :exit, _program_gone -> {:error, Error.from_reason(program_gone())}
  end

  defp open(wasm_port, registration, options) do
    channel = %__MODULE__{
      id: registration.id,
      port: registration.port,
      monitor: Process.monitor(wasm_port),
      window: registration.window,
      max_payload: registration.max_payload,
      credit: registration.window,
      allowance: registration.window
    }

    write(channel, {:open, channel.id, options})
    channel
  end

  @doc "Sends bytes of the Postgres protocol, or keeps what the window does not admit yet."
  @spec send(t, binary) :: t
  def send(%__MODULE__{kept: <<>>} = channel, bytes), do: push(channel, bytes)
  def send(%__MODULE__{kept: kept} = channel, bytes), do: %{channel | kept: kept <> bytes}

  @doc "Whether everything sent so far was written to the program."
  @spec writable?(t) :: boolean
  def writable?(%__MODULE__{kept: kept}), do: kept == <<>>

  @doc "Says that `bytes` bytes of received data have been processed."
  @spec consumed(t, non_neg_integer) :: t
  def consumed(%__MODULE__{} = channel, bytes) do
    consumed = channel.consumed + bytes

    if consumed >= div(channel.window, 2) do
      write(channel, {:window, channel.id, consumed})
      %{channel | consumed: 0, allowance: channel.allowance + consumed}
    else
      %{channel | consumed: consumed}
    end
  end

  @doc """
  Handles a message from the owner's mailbox; `:unknown` when it is not a message of the channel.

  The event of data contains all data that is in the mailbox, the newest chunk first.
  """
  @spec handle(t, term) ::
          {:data, newest_first :: [binary, ...], size :: non_neg_integer, t}
          | {:window, t}
          | {:closed, reason}
          | :unknown
  def handle(%__MODULE__{id: id} = channel, {__MODULE__, id, {:data, bytes}}) do
    {chunks, size} = gather(id, [bytes], byte_size(bytes))

    if size <= channel.allowance,
      do: {:data, chunks, size, %{channel | allowance: channel.allowance - size}},
      else: {:closed, window_overrun(size - channel.allowance)}
  end

  def handle(%__MODULE__{id: id} = channel, {__MODULE__, id, {:window, bytes}}) do
    {:window, push(%{channel | credit: channel.credit + bytes, kept: <<>>}, channel.kept)}
  end

  def handle(%__MODULE__{id: id}, {__MODULE__, id, {:closed, reason}}), do: {:closed, reason}

  def handle(%__MODULE__{monitor: monitor}, {:DOWN, monitor, :process, _pid, _reason}),
    do: {:closed, program_gone()}

  def handle(%__MODULE__{}, _message), do: :unknown

  @doc """
  The reason when the program has ended: SQLSTATE `57P01`, `admin_shutdown`, as when a PostgreSQL
  server stops.
  """
  @spec program_gone() :: reason
  def program_gone do
    %{
      "severity" => "FATAL",
      "code" => "57P01",
      "message" => "the database program has ended"
    }
  end

  @doc """
  The reason when the program is not ready yet: SQLSTATE `57P03`, `cannot_connect_now`, as when a
  PostgreSQL server starts.
  """
  @spec starting() :: reason
  def starting do
    %{
      "severity" => "FATAL",
      "code" => "57P03",
      "message" => "the database program is starting up"
    }
  end

  @doc """
  Translates an owner's exit reason into the reason why its connection ended.

  An owner whose connection has ended stops with `{:shutdown, {:closed, reason}}`; every other exit
  reason is the supervisor's order, because the server stops or the program has gone.
  """
  @spec closing_reason(exit_reason :: term) :: reason
  def closing_reason({:shutdown, {:closed, reason}}), do: reason
  def closing_reason(_shutdown), do: program_gone()

  defp window_overrun(bytes) do
    %{
      "severity" => "FATAL",
      "code" => "08P01",
      "message" => "pglite-port sent #{bytes} bytes more than its window admits"
    }
  end

  defp gather(id, chunks, size) do
    receive do
      {__MODULE__, ^id, {:data, bytes}} -> gather(id, [bytes | chunks], size + byte_size(bytes))
    after
      0 -> {chunks, size}
    end
  end

  defp push(channel, <<>>), do: channel
  defp push(%{credit: 0} = channel, bytes), do: %{channel | kept: bytes}

  defp push(channel, bytes) do
    size = bytes |> byte_size() |> min(channel.credit) |> min(channel.max_payload)
    <<now::binary-size(size), later::binary>> = bytes
    write(channel, {:data, channel.id, now})
    push(%{channel | credit: channel.credit - size}, later)
  end

  # While the program does not read, this suspends the calling process, but no other.
  defp write(channel, frame) do
    Port.command(channel.port, Frame.encode(frame))
    :ok
  rescue
    # The port has closed; the monitor's message says so to the owner.
    ArgumentError -> :ok
  end
end
