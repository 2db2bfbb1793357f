defmodule Integration.Subscriber do
  @moduledoc """
  A replication connection that runs the commands of a test, and sends it the messages of `pgoutput`.

  They are sent as `{:message, message}`, read by the decoder of the guide "A live query", which `test_helper.exs`
  compiles.
  """
  use Postgrex.ReplicationConnection, restart: :temporary

  alias Postgrex.ReplicationConnection

  @compile {:no_warn_undefined, MyApp.Changes.Message}
  # Times are counted from there, in microseconds.
  @epoch DateTime.to_unix(~U[2000-01-01 00:00:00Z], :microsecond)

  @doc "Starts one for the calling process; it ends with its connection."
  def start_link(options), do: ReplicationConnection.start_link(__MODULE__, self(), options)

  @doc "Runs a command of the replication protocol, or a statement of SQL."
  def query(subscriber, command) do
    ReplicationConnection.call(subscriber, {:query, command}, 30_000)
  end

  @doc "The same for what has to succeed; returns the rows, whose values are texts."
  def query!(subscriber, command) do
    case query(subscriber, command) do
      {:ok, %Postgrex.Result{rows: rows}} -> rows
      {:error, error} -> raise error
    end
  end

  @doc "Begins to receive messages with a command `START_REPLICATION`."
  def stream(subscriber, command), do: ReplicationConnection.call(subscriber, {:stream, command})

  @doc "Says that everything up to a position in the WAL is written, flushed and applied."
  def confirm(subscriber, lsn), do: ReplicationConnection.call(subscriber, {:confirm, lsn})

  @doc "Waits until the slots of a server are not in use: a session ends when it has noticed that its client has gone."
  def await_inactive(conn, deadline \\ System.monotonic_time(:millisecond) + 30_000) do
    %{rows: rows} = Postgrex.query!(conn, "select active from pg_replication_slots", [])

    if rows != [[false]] do
      if System.monotonic_time(:millisecond) > deadline, do: raise("the slot is still in use")
      await_inactive(conn, deadline)
    end
  end

  @impl true
  def init(test), do: {:ok, %{test: test, from: nil}}

  @impl true
  def handle_call({:query, command}, from, state), do: {:query, command, %{state | from: from}}

  def handle_call({:stream, command}, from, state) do
    ReplicationConnection.reply(from, :ok)
    {:stream, command, [], state}
  end

  def handle_call({:confirm, lsn}, from, state) do
    ReplicationConnection.reply(from, :ok)
    time = System.os_time(:microsecond) - @epoch
    {:noreply, [<<?r, lsn::64, lsn::64, lsn::64, time::64, 0>>], state}
  end

  @impl true
  def handle_result([result], state), do: reply({:ok, result}, state)
  def handle_result(%Postgrex.Error{} = error, state), do: reply({:error, error}, state)

  defp reply(result, %{from: from} = state) do
    ReplicationConnection.reply(from, result)
    {:noreply, %{state | from: nil}}
  end

  @impl true
  def handle_data(<<?w, _start::64, _end::64, _time::64, message::binary>>, state) do
    send(state.test, {:message, MyApp.Changes.Message.decode(message)})
    {:noreply, state}
  end

  # Only the test confirms anything.
  def handle_data(<<?k, _lsn::64, _time::64, _reply>>, state), do: {:noreply, state}

  @doc """
  The messages of the next transaction but its begin and commit, with the names of tables in the place of their numbers,
  and where it ends in the WAL. Columns are left out: `{:relation, name}`.

  Returns `{transaction, messages, lsn}`. Only the process that started the subscriber gets messages.
  """
  def next_transaction do
    case next_message() do
      {:begin, transaction} -> collect(transaction, [])
      # One that belongs to no transaction.
      {:message, false, _prefix, _content} = message -> {nil, [message], nil}
    end
  end

  defp collect(transaction, messages) do
    case next_message() do
      {:commit, lsn} ->
        {transaction, Enum.reverse(messages), lsn}

      {:relation, id, {_schema, name}, _columns} ->
        Process.put({__MODULE__, id}, name)
        collect(transaction, messages)

      message ->
        collect(transaction, [with_name(message) | messages])
    end
  end

  defp with_name({:truncate, ids}), do: {:truncate, Enum.map(ids, &name/1)}

  defp with_name(message) when elem(message, 0) in [:insert, :update, :delete],
    do: put_elem(message, 1, name(elem(message, 1)))

  defp with_name(message), do: message

  # PostgreSQL describes a table before its first change.
  defp name(id), do: Process.get({__MODULE__, id}) || raise("nothing is known about table #{id}")

  defp next_message do
    receive do
      {:message, message} -> message
    after
      20_000 -> raise "no message"
    end
  end
end
