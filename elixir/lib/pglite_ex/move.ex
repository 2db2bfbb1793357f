defmodule PgliteEx.Move do
  @moduledoc false
  # Moves of a database to another server while it is in use: a run of the program's command `move`.
  #
  # The command is a child of a shell, which tells it to stop when its own standard input ends or has a line.
  # So a move is broken off, and what it has begun is undone, whenever the port closes: with the calling
  # process, or with the VM, however these end.
  #
  # Passwords are in no argument: the program reads them from a file that is removed before it begins.

  alias PgliteEx.{Branch, Error, Executable, Password}

  # Has the directory with the file of the passwords while the program is being started.
  @password_variable "PGLITE_EX_PASSWORD"
  # Waits for the program, and stops it when nobody waits for it any more. It ends with the program's status, and
  # says nothing itself.
  @shell """
  exec 4<&0
  "$0" "$@" </dev/null 2>&1 4<&- &
  program=$!
  exec 2>/dev/null
  { read -r _ || :; kill -TERM $program; } <&4 >/dev/null &
  watch=$!
  wait $program
  status=$?
  kill $watch
  exit $status
  """
  # How long a move that was told to stop may take to undo what it has begun, in milliseconds.
  @undo_timeout 60_000
  # A line that the program says, one of its log of errors, and one of its table.
  @log_line ~r/^pglite-port: (.*)$/s
  @error_line ~r/^\S+Z +ERROR [\w:]+: (.*)$/s
  @row ~r/^(.*\S) +(\d+) +(\d+)  (yes|NO)$/s
  # How the line begins that tells that the target is the database from now on.
  @switched "switched: "
  # A URL with a password: what is in front of the user, the user, the password, the rest.
  @with_password ~r{^(postgres(?:ql)?://)([^:@/]*):([^@]*)@(.*)$}s

  @type table :: %{
          table: String.t(),
          rows: non_neg_integer,
          rows_in_target: non_neg_integer,
          same?: boolean
        }
  @type event :: :progress | :switched

  @doc "See `PgliteEx.move/3`."
  @spec move(PgliteEx.server() | Branch.t(), String.t(), keyword) ::
          {:ok, [table]} | {:error, Error.t()}
  def move(origin, url, options) do
    options = Keyword.validate!(options, [database: nil] ++ defaults())
    %{mode: mode} = server = Branch.options(origin)

    if mode == :shared do
      of_server = Map.take(server, [:executable, :pglite_dir, :cache_dir, :icu_data])
      source = PgliteEx.url(origin, options[:database] || server.database)
      options = options |> Keyword.delete(:database) |> Keyword.merge(Enum.to_list(of_server))
      run(source, url, options)
    else
      {:error, no_cluster()}
    end
  end

  @doc """
  Moves the database at one URL to another one. The options are those of `PgliteEx.move/3` and, of a
  server, where the program and its files are.
  """
  @spec run(String.t(), String.t(), keyword) :: {:ok, [table]} | {:error, Error.t()}
  def run(source, target, options) do
    places = [executable: nil, pglite_dir: nil, cache_dir: nil, icu_data: nil]
    options = Keyword.validate!(options, places ++ defaults())
    {source, source_password} = take_password!(source)
    {target, target_password} = take_password!(target)

    with :ok <- check_way_back(source_password, options[:source_for_target]),
         {:ok, executable} <- Executable.find(options[:executable]) do
      passwords = [{source, source_password}, {target, target_password}]
      arguments = ["move", source, "--to", target] ++ arguments(options)
      run_program(executable, arguments, entries(passwords), options)
    end
  end

  defp defaults do
    [source_for_target: nil, start_over: false, on_progress: nil, timeout: :infinity]
  end

  defp arguments(options) do
    places = [
      {"--pglite-dir", options[:pglite_dir] || Executable.installed_pglite_dir()},
      {"--cache-dir", options[:cache_dir]},
      {"--icu-data", options[:icu_data]}
    ]

    words = for {flag, value} <- places, value != nil, word <- [flag, value], do: word
    if options[:start_over], do: ["--start-over" | words], else: words
  end

  # The target stores how it connects to the source, password included.
  defp check_way_back(nil, nil), do: :ok

  defp check_way_back(_password, url) when url != nil do
    if url?(url),
      do: :ok,
      else: raise(ArgumentError, "source_for_target: a URL postgresql://… is needed")
  end

  defp check_way_back(_password, nil) do
    message =
      "the source asks for a password, and the target's server connects to it by itself: give a URL for that as " <>
        "source_for_target:, best of a role that is made for the move, because the target keeps it until the switch"

    {:error, %Error{code: :invalid_options, message: message}}
  end

  # A URL without its password, and the password, which no error shows.
  defp take_password!(url) do
    unless url?(url) and not (url =~ ~r/[?&]password=/),
      do: raise(ArgumentError, "a URL postgresql://USER:PASSWORD@HOST:PORT/DATABASE is needed")

    case Regex.run(@with_password, url, capture: :all_but_first) do
      [scheme, user, password, rest] when password != "" ->
        {"#{scheme}#{user}@#{rest}", URI.decode(password)}

      _none ->
        {url, nil}
    end
  end

  defp url?(url), do: is_binary(url) and url =~ ~r{^postgres(ql)?://} and not (url =~ <<0>>)

  # The passwords in the format of `PGPASSFILE`; that of the source is for its address only. `nil`: there are none,
  # and the program looks for them as every client does.
  defp entries([{_source, nil}, {_target, nil}]), do: nil

  defp entries(passwords) do
    # It would precede the file.
    general = System.get_env("PGPASSWORD", "")

    Enum.map_join(passwords ++ [{nil, general}], "\n", fn
      {_url, none} when none in [nil, ""] -> "#"
      {nil, password} -> "*:*:*:*:#{escape(password)}"
      {url, password} -> "#{place(url)}:#{escape(password)}"
    end)
  end

  # Host, port, any database, and user.
  defp place(url) do
    %{host: host, port: port, userinfo: user} = URI.parse(url)
    host = if host in [nil, ""], do: "*", else: URI.decode(host)
    Enum.map_join([host, "#{port || "*"}", "*", user(user)], ":", &escape_unless_any/1)
  end

  defp user(none) when none in [nil, ""], do: "*"
  defp user(user), do: URI.decode(user)

  defp escape_unless_any("*"), do: "*"
  defp escape_unless_any(text), do: escape(text)

  defp escape(text) do
    if text =~ ~r/[\r\n\0]/,
      do: raise(ArgumentError, "a password, a user or a host has a line break or a NUL")

    String.replace(text, ["\\", ":"], &("\\" <> &1))
  end

  defp run_program(executable, arguments, entries, options) do
    directory = entries && Password.write!(entries)
    open_password = if directory, do: Password.shell(@password_variable), else: ""

    settings = [
      :binary,
      :exit_status,
      :use_stdio,
      :hide,
      line: 65_536,
      env: way_back(options[:source_for_target]) ++ environment(directory),
      args: ["-c", open_password <> @shell, executable | arguments]
    ]

    try do
      Port.open({:spawn_executable, "/bin/sh"}, settings)
    rescue
      error in ErlangError ->
        if directory, do: File.rm_rf(directory)
        message = "cannot start #{executable}: #{:file.format_error(error.original)}"
        {:error, %Error{code: error.original, message: message}}
    else
      port -> follow(port, options)
    end
  end

  # Not in the arguments, which everybody can see: it may have a password.
  defp way_back(nil), do: []
  defp way_back(url), do: [{~c"PGLITE_PORT_SOURCE_FOR_TARGET", to_charlist(url)}]

  # The level of its log without what is no error.
  defp environment(nil), do: [{~c"PGLITE_PORT_LOG", ~c"error"}]

  defp environment(directory) do
    [
      {~c"PGPASSWORD", false},
      {~c"PGPASSFILE", to_charlist(Password.path())},
      {to_charlist(@password_variable), to_charlist(directory)} | environment(nil)
    ]
  end

  defp follow(port, options) do
    tell = options[:on_progress] || fn _event -> :ok end
    deadline = deadline(options[:timeout])

    try do
      collect(%{
        port: port,
        tell: tell,
        deadline: deadline,
        stopped?: false,
        line: [],
        said: [],
        troubles: [],
        tables: []
      })
    after
      close(port)
    end
  end

  defp deadline(:infinity), do: :infinity
  defp deadline(timeout), do: System.monotonic_time(:millisecond) + timeout

  defp left(:infinity), do: :infinity
  defp left(deadline), do: max(deadline - System.monotonic_time(:millisecond), 0)

  defp collect(%{port: port} = state) do
    receive do
      {^port, {:data, {:noeol, part}}} ->
        collect(%{state | line: [state.line, part]})

      {^port, {:data, {:eol, part}}} ->
        line = IO.iodata_to_binary([state.line, part])
        %{state | line: []} |> take(line) |> collect()

      {^port, {:exit_status, status}} ->
        result(state, status)
    after
      left(state.deadline) -> stop(state)
    end
  end

  defp stop(%{stopped?: true}), do: {:error, timeout("it still undoes what it has begun")}

  defp stop(%{port: port} = state) do
    Port.command(port, "stop\n")
    collect(%{state | stopped?: true, deadline: deadline(@undo_timeout)})
  end

  defp take(state, line) do
    case {Regex.run(@log_line, line), Regex.run(@row, line)} do
      {[_line, text], _row} ->
        event = if String.starts_with?(text, @switched), do: :switched, else: :progress
        state.tell.({event, text})
        %{state | said: [text]}

      {nil, [_line, table, rows, rows_in_target, same]} ->
        row = %{
          table: table,
          rows: String.to_integer(rows),
          rows_in_target: String.to_integer(rows_in_target),
          same?: same == "yes"
        }

        %{state | tables: [row | state.tables]}

      {nil, nil} ->
        case Regex.run(@error_line, line, capture: :all_but_first) do
          [text] -> %{state | troubles: [text | state.troubles]}
          nil -> %{state | said: [line | state.said]}
        end
    end
  end

  defp result(%{tables: [_ | _] = tables}, _status), do: {:ok, Enum.reverse(tables)}
  defp result(_no_tables, 0), do: {:ok, []}

  defp result(%{stopped?: true} = state, _status),
    do: {:error, %{timeout(said(state, "it has ended")) | hint: hint(state)}}

  defp result(state, status) do
    message = said(state, "pglite-port ended: exit status #{status}; it wrote nothing")
    {:error, %Error{code: :move_failed, message: message, hint: hint(state)}}
  end

  # What could not be undone.
  defp hint(%{troubles: []}), do: nil

  defp hint(%{troubles: troubles}) do
    troubles = troubles |> Enum.reverse() |> Enum.join("\n")

    troubles <>
      "\nThe next move removes what is left in the target with start_over: true (--start-over)."
  end

  defp said(%{said: []}, otherwise), do: otherwise
  defp said(%{said: said}, _otherwise), do: said |> Enum.reverse() |> Enum.join("\n")

  defp timeout(said) do
    %Error{
      code: :timeout,
      message: "the move was not over in time, and was told to stop: #{said}"
    }
  end

  # With the port, the standard input of the shell is closed, so that a program that still runs is told to stop.
  defp close(port) do
    Process.unlink(port)
    Port.close(port)
  rescue
    # It has closed by itself.
    ArgumentError -> true
  after
    flush(port)
  end

  # Nothing of it stays in the mailbox of the caller.
  defp flush(port) do
    receive do
      {^port, _message} -> flush(port)
      {:EXIT, ^port, _reason} -> flush(port)
    after
      0 -> :ok
    end
  end

  # `feature_not_supported`: it would be that of a shared cluster, which no client of the server has.
  defp no_cluster do
    message = "a server in mode :isolated has no cluster to move"
    %Error{code: "0A000", message: message}
  end
end
