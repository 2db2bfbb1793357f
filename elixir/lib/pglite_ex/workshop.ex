defmodule PgliteEx.Workshop do
  @moduledoc false
  # Makes a template: runs the preparing function against a server of its own, and freezes its cluster.
  #
  # The caller may trap no exits, and no crash may end it. So there are three processes: the caller
  # monitors a keeper; the keeper traps exits, owns the server, and is linked to the worker; the
  # worker runs the function, and is what processes started by the function are linked to.

  alias PgliteEx.{Error, Options, Parts, Password, Session}

  @doc """
  Builds the template `name`, with the options of `PgliteEx.Template.freeze/3`. Whatever goes wrong is returned, and the server has ended by then.
  """
  @spec build(Options.t(), String.t(), keyword, (keyword -> term)) ::
          {:ok, :built} | {:error, Error.t()}
  def build(%Options{} = options, name, frozen, fun) do
    caller = self()
    callers = [caller | Process.get(:"$callers", [])]

    {keeper, monitor} =
      spawn_monitor(fn ->
        Process.flag(:trap_exit, true)
        work = fn connection_opts -> run(fun, connection_opts, callers) end
        exit({:shutdown, {__MODULE__, keep(options, name, frozen, work)}})
      end)

    result =
      receive do
        {:DOWN, ^monitor, :process, ^keeper, {:shutdown, {__MODULE__, result}}} -> result
        {:DOWN, ^monitor, :process, ^keeper, reason} -> {:error, failed(reason)}
      end

    without_password(result, options)
  end

  # A server of its own, so that nothing but the function leaves traces in the cluster.
  defp keep(options, name, frozen, work) do
    workshop_options =
      options
      |> Map.take([
        :executable,
        :pglite_dir,
        :extensions,
        :cache_dir,
        :icu_data,
        :username,
        :log_level
      ])
      |> Keyword.new()
      |> Keyword.put(:database, name)
      |> Keyword.merge(authentication(options))

    with {:ok, workshop} <- start(workshop_options) do
      in_session = &Session.run(Parts.registry!(workshop), name, [], &1)

      try do
        with {:ok, {before, _open}} <- in_session.(&state/1),
             :ok <- work.(PgliteEx.connection_opts(workshop)),
             :ok <- in_session.(&freeze(&1, before, name, frozen)),
             do: {:ok, :built}
      after
        stop(workshop)
      end
    end
  end

  # Nobody else gets into the workshop of a server with a password. Its rules are for other addresses.
  defp authentication(%{password: nil}), do: []
  defp authentication(%{password: password}), do: [auth: :scram_sha_256, password: password]

  # What changes with the cluster: the next transaction id, which every transaction that writes takes,
  # and the settings of ALTER SYSTEM. And the sessions that wait for the next command of a transaction.
  @state """
  select pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot()),
    pg_catalog.pg_read_file('postgresql.auto.conf', true),
    (select count(*) from pg_catalog.pg_stat_activity where state like 'idle in transaction%')
  """

  defp state(session) do
    with {:ok, [[xid, settings, open]]} <- Session.query(session, @state),
         do: {:ok, {{xid, settings}, open}}
  end

  defp freeze(session, before, name, frozen) do
    case state(session) do
      {:ok, {^before, _open}} ->
        {:error, refused(unchanged())}

      {:ok, {_changed, "0"}} ->
        PgliteEx.freeze(session, name, frozen)

      {:ok, _open} ->
        {:error, refused("left a transaction open; end it with COMMIT")}

      {:error, error} ->
        {:error, error}
    end
  end

  defp unchanged do
    "changed nothing in the database of its connection options. Did it connect elsewhere? " <>
      "A repo that runs already does; start another one with these options and `name: nil`, and " <>
      "tell `Ecto.Migrator.run/4` about it with `dynamic_repo:`"
  end

  defp refused(what),
    do: %Error{code: :prepare_failed, message: "the preparing function " <> what}

  defp start(options) do
    case PgliteEx.start_link(options) do
      {:ok, workshop} -> {:ok, workshop}
      # The exit reason of a process that did not start, some with a stack trace.
      {:error, {%Error{} = error, _stacktrace}} -> {:error, error}
      {:error, %Error{} = error} -> {:error, error}
      {:error, reason} -> {:error, failed(reason)}
    end
  end

  # What a function raises may have its arguments in it.
  defp without_password({:error, %Error{} = error}, options),
    do: {:error, %{error | message: Password.redact(error.message, options)}}

  defp without_password(result, _options), do: result

  defp stop(workshop) do
    PgliteEx.stop(workshop)
  catch
    :exit, _given_up -> :ok
  end

  defp run(fun, connection_opts, [caller | _] = callers) do
    monitor = Process.monitor(caller)

    worker =
      spawn_link(fn ->
        # As `Task` does: Ecto's sandbox and others look up the process that asked for the work.
        Process.put(:"$callers", callers)

        try do
          fun.(connection_opts)
        catch
          kind, reason ->
            failure = Exception.format(kind, reason, __STACKTRACE__)
            exit({:shutdown, {__MODULE__, failure}})
        end
      end)

    receive do
      {:EXIT, ^worker, :normal} ->
        :ok

      {:EXIT, ^worker, {:shutdown, {__MODULE__, failure}}} ->
        {:error, refused("failed: #{failure}")}

      {:EXIT, ^worker, reason} ->
        {:error, failed(reason)}

      {:DOWN, ^monitor, :process, ^caller, _reason} ->
        Process.exit(worker, :kill)
        {:error, %Error{code: :prepare_failed, message: "the calling process has ended"}}
    end
  end

  defp failed(reason) do
    message =
      "a process that the preparation is linked to ended: " <> Exception.format_exit(reason)

    %Error{code: :prepare_failed, message: message}
  end
end
