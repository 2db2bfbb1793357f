defmodule PgliteEx.Archive do
  @moduledoc false
  # Puts the program and PGlite's files into `priv/` from an archive that `make dist` has made, so
  # that neither Rust nor Node.js is needed. Used by Mix tasks.
  #
  # The archive is executed sooner or later, so nothing of it is unpacked before its SHA-256 is that
  # of the configuration, of the list in the package (`archives.sha256`, one line for each archive of
  # this version), or of the file with `.sha256` after its name in the same place. The last one tells
  # of damage only, so it does not do for a place that anybody on the way can write to: `http:`.

  alias PgliteEx.{Download, Executable, Launchers, OwnBundles}

  @list Path.expand("../../archives.sha256", __DIR__)
  @version Mix.Project.config()[:version]
  # In priv/: the version of this library when it was filled, the SHA-256 of the archive, and where that was.
  @record "archive.sha256"

  @typedoc "Where an archive is, a path or a URL, and its SHA-256 if that is configured."
  @type named :: {String.t(), nil | String.t()}

  @doc """
  The archive that the options name (`:archive`, `:sha256`), or else the environment
  (`PGLITE_EX_ARCHIVE`, `PGLITE_EX_ARCHIVE_SHA256`), or else the configuration
  (`config :pglite_ex, archive: …, archive_sha256: …`); `nil` if none is named. A SHA-256 of the options
  or the environment is for the archive of any of them, one of the configuration for its own.
  """
  @spec named(keyword()) :: nil | named()
  def named(options \\ []) do
    given = options[:sha256] || variable("PGLITE_EX_ARCHIVE_SHA256")

    case options[:archive] || variable("PGLITE_EX_ARCHIVE") do
      nil ->
        with place when place not in [nil, ""] <- Application.get_env(:pglite_ex, :archive),
             do: {fill_in(to_string(place)), given || configured_sha256()},
             else: (_none -> nil)

      place ->
        {fill_in(place), given}
    end
  end

  defp variable(name) do
    with "" <- System.get_env(name, ""), do: nil
  end

  # One for each machine, or one.
  defp configured_sha256 do
    case Application.get_env(:pglite_ex, :archive_sha256) do
      %{} = of_machines ->
        Map.get(of_machines, target(machine()), "none for #{target(machine())}")

      one ->
        one
    end
  end

  defp machine, do: List.to_string(:erlang.system_info(:system_architecture))

  @doc """
  Fills in what an archive's name may leave open: `{version}` of this library and `{target}`, this
  machine's, as Rust writes it. A path becomes an absolute one.

      iex> PgliteEx.Archive.fill_in("/a-{target}.tar.gz", "x86_64-pc-linux-gnu")
      "/a-x86_64-unknown-linux-gnu.tar.gz"
      iex> PgliteEx.Archive.fill_in("/a-{target}.tar.gz", "x86_64-alpine-linux-musl")
      "/a-x86_64-unknown-linux-musl.tar.gz"
      iex> PgliteEx.Archive.fill_in("https://example.com/{target}", "aarch64-apple-darwin23.1.0")
      "https://example.com/aarch64-apple-darwin"
  """
  @spec fill_in(String.t(), String.t()) :: String.t()
  def fill_in(place, machine \\ machine()) do
    place =
      place
      |> String.replace("{version}", @version)
      |> String.replace("{target}", target(machine))

    # Mix compiles a dependency in its own directory; the path was meant from where Mix was started.
    if url?(place), do: place, else: Path.expand(place, System.get_env("PWD") || File.cwd!())
  end

  defp target(machine) do
    case String.split(machine, "-") do
      [processor, "apple", _darwin] -> "#{processor}-apple-darwin"
      [processor, _vendor, "linux", abi] -> "#{processor}-unknown-linux-#{abi}"
      _unknown -> machine
    end
  end

  @doc "Whether `priv/` was filled from this archive, as far as can be told without a network."
  @spec installed?(named()) :: boolean()
  def installed?({place, given}) do
    with {:ok, record} <- File.read(Path.join(priv(), @record)),
         [@version, sha256, ^place] <- String.split(record, "\n", trim: true) do
      case checksum_at_hand(place, given) do
        {:ok, known, _source} -> known == sha256
        :none -> true
        {:error, _why} -> false
      end
    else
      _other_or_none -> false
    end
  end

  @doc "Whether what is in `priv/` came from any archive."
  @spec filled?() :: boolean()
  def filled?, do: File.regular?(Path.join(priv(), @record))

  @doc "Forgets which archive the program in `priv/` came from, because another one is there now."
  @spec forget() :: :ok
  def forget do
    _ = File.rm(Path.join(priv(), @record))
    :ok
  end

  @doc """
  Fetches the archive if it is not a file, checks and unpacks it, tries the program, and puts
  everything into `priv/`. What is there before is replaced only then. Returns the version that the
  program prints; the error is a sentence.
  """
  @spec install(named(), Path.t()) :: {:ok, String.t()} | {:error, String.t()}
  def install({place, given}, priv \\ priv()) do
    # The numbers of processes repeat in containers.
    beside = Path.join(priv, ".archive.#{System.pid()}.#{System.unique_integer([:positive])}")
    remove_old(priv)

    try do
      with :ok <- make(beside),
           {:ok, sha256, source} <- checksum(place, given, beside),
           {:ok, file} <- fetch(place, beside),
           :ok <- check(file, sha256, source, place),
           {:ok, root} <- unpack(file, beside, place),
           {:ok, version} <- try_program(root, place),
           :ok <- move(root, priv, beside, "#{@version}\n#{sha256}\n#{place}\n"),
           do: {:ok, version}
    after
      File.rm_rf(beside)
    end
  end

  # A run that was killed has left it; one of the last hour may still go on.
  defp remove_old(priv) do
    for path <- Enum.map(OwnBundles.ls(priv), &Path.join(priv, &1)),
        String.starts_with?(Path.basename(path), ".archive."),
        {:ok, %{mtime: time}} <- [File.stat(path, time: :posix)],
        time < System.os_time(:second) - 3600,
        do: File.rm_rf(path)
  end

  defp priv, do: Path.dirname(Executable.installed_path())

  defp make(directory) do
    with {:error, reason} <- File.mkdir_p(directory) do
      {:error,
       "nothing can be unpacked into #{Path.dirname(directory)}: #{:file.format_error(reason)}; " <>
         "unpack the archive elsewhere and name the program in it with PGLITE_PORT"}
    end
  end

  defp url?(place), do: String.starts_with?(place, ["http://", "https://"])

  defp checksum(place, given, beside) do
    with :none <- checksum_at_hand(place, given) do
      cond do
        String.starts_with?(place, "https://") ->
          file = Path.join(beside, "sha256")
          url = with_suffix(place)

          with :ok <- Download.to_file(url, file, limit: 4096),
               do: file |> File.read!() |> parse(url, place)

        url?(place) ->
          {:error,
           "#{place} is not encrypted, so that its SHA-256 has to be known beforehand: " <>
             "set PGLITE_EX_ARCHIVE_SHA256, or archive_sha256: in the configuration"}

        not File.regular?(place) ->
          {:error, "the archive #{place} is no file"}

        true ->
          {:error,
           "the SHA-256 of #{place} is not known: put #{Path.basename(place)}.sha256 beside it, " <>
             "or set PGLITE_EX_ARCHIVE_SHA256"}
      end
    end
  end

  # What comes behind the name in a URL stays there.
  defp with_suffix(url) do
    uri = URI.parse(url)
    URI.to_string(%{uri | path: (uri.path || "") <> ".sha256"})
  end

  # Without a network.
  defp checksum_at_hand(place, given) do
    name = place |> URI.parse() |> Map.get(:path) |> Kernel.||("") |> Path.basename()

    with :none <- given(given),
         :none <- listed(name),
         do: if(url?(place), do: :none, else: beside(place))
  end

  defp given(none) when none in [nil, ""], do: :none
  defp given(text), do: parse(text, "the SHA-256 that is configured", text)

  # Of the archives that belong to this package. Another one has to be vouched for.
  defp listed(name) do
    with {:ok, list} <- File.read(@list) do
      sums =
        for [sum, found] <- Regex.scan(~r/^(\S+) [ *](.+)$/m, list, capture: :all_but_first),
            do: {found, sum}

      case List.keyfind(sums, name, 0) do
        {_name, sum} ->
          parse(sum, @list, name)

        nil ->
          {:error,
           "#{name} is none of the archives of this version (#{Enum.map_join(sums, ", ", &elem(&1, 0))}): " <>
             "take one of them, or set PGLITE_EX_ARCHIVE_SHA256 to the SHA-256 that it must have"}
      end
    else
      {:error, _no_list} -> :none
    end
  end

  defp beside(place) do
    case File.read(place <> ".sha256") do
      {:ok, text} -> parse(text, place <> ".sha256", place)
      {:error, _none} -> :none
    end
  end

  # As sha256sum writes it: the name of the file comes after it.
  defp parse(text, source, place) do
    case Regex.run(~r/\A\s*([0-9a-fA-F]{64})(\s|\z)/, text) do
      [_all, sha256, _space] ->
        {:ok, String.downcase(sha256), source}

      nil ->
        {:error,
         "#{source} is #{inspect(String.slice(text, 0, 80))}, which is no SHA-256 of " <>
           "64 hexadecimal digits; nothing of #{place} was unpacked"}
    end
  end

  # A file is copied, so that what is checked is what is unpacked.
  defp fetch(place, beside) do
    file = Path.join(beside, "archive.tar.gz")

    cond do
      url?(place) ->
        with :ok <- Download.to_file(place, file), do: {:ok, file}

      File.regular?(place) ->
        case File.cp(place, file) do
          :ok -> {:ok, file}
          {:error, reason} -> {:error, "#{place} cannot be copied: #{:file.format_error(reason)}"}
        end

      true ->
        {:error, "the archive #{place} is no file"}
    end
  end

  defp check(file, expected, source, place) do
    found =
      file
      |> File.stream!([], 1_048_576)
      |> Enum.reduce(:crypto.hash_init(:sha256), &:crypto.hash_update(&2, &1))
      |> :crypto.hash_final()
      |> Base.encode16(case: :lower)

    if found == expected do
      :ok
    else
      {:error,
       "#{place} is not the archive that was expected: its SHA-256 is #{found}, and should be " <>
         "#{expected} (#{source}); nothing was unpacked"}
    end
  end

  defp unpack(file, beside, place) do
    into = Path.join(beside, "unpacked")

    with :ok <- File.mkdir_p(into),
         :ok <- :erl_tar.extract(to_charlist(file), [:compressed, cwd: to_charlist(into)]),
         [name] <- OwnBundles.ls(into),
         root = Path.join(into, name),
         true <- File.regular?(Path.join(root, "pglite-port")),
         true <- File.regular?(Path.join(root, "pglite/pglite.wasm")) do
      {:ok, root}
    else
      {:error, reason} ->
        {:error, "#{place} cannot be unpacked: #{:erl_tar.format_error(reason)}"}

      _not_there ->
        {:error,
         "#{place} is no archive of pglite-port: it does not hold one directory with the files " <>
           "pglite-port and pglite/pglite.wasm"}
    end
  end

  # What cannot run here (another processor, a C library that is too old) never gets into priv/.
  defp try_program(root, place) do
    {output, status} =
      System.cmd(Path.join(root, "pglite-port"), ["--version"], stderr_to_stdout: true)

    case {status, output |> String.trim() |> String.split()} do
      {0, ["pglite-port", @version | _more]} ->
        {:ok, String.trim(output)}

      {0, _other} ->
        {:error,
         "the program in #{place} is #{inspect(String.trim(output))}, and this library needs " <>
           "pglite-port #{@version}: take the archive of that version"}

      {status, []} ->
        cannot_run(place, why(status))

      {status, _output} ->
        cannot_run(place, "it ends with status #{status}: #{String.trim(output)}")
    end
  rescue
    error in ErlangError -> cannot_run(place, why(error.original))
  end

  # What the kernel does not execute ends with the number of the error as its status, and says nothing.
  defp why(error) when error in [:enoent, 2],
    do: "the C library that it is linked with (glibc) is not there"

  defp why(error) when error in [:enoexec, 8], do: "it is for another processor"

  defp why(error) when error in [:eacces, 13],
    do: "nothing can be executed there (is it mounted noexec?)"

  defp why(status) when is_integer(status), do: "it ends with status #{status}"
  defp why(reason), do: inspect(reason)

  defp cannot_run(place, why) do
    {:error,
     "the program in #{place} does not run on this machine (#{target(machine())}): #{why}; take the " <>
       "archive of this machine, or name another program with PGLITE_PORT"}
  end

  # What has a program and a record is taken to be complete, so the program comes last, and the
  # record says until then that it is not.
  defp move(root, priv, beside, record) do
    program = Path.basename(Executable.installed_path())
    rest = root |> File.ls!() |> List.delete(program)
    File.write!(Path.join(priv, @record), "unfinished\n")
    Launchers.install!(Path.join(priv, "bin"))
    OwnBundles.note!(Path.join(root, "pglite"))
    OwnBundles.keep!(Path.join(priv, "pglite"), Path.join(root, "pglite"))

    for name <- rest ++ [program],
        do: replace!(Path.join(root, name), Path.join(priv, name), Path.join(beside, "old"), 10)

    File.write!(Path.join(priv, @record), record)
  rescue
    error in [File.Error, File.CopyError, File.RenameError] ->
      {:error, "the archive cannot be moved into #{priv}: #{Exception.message(error)}"}
  end

  # What is there is moved away first, because a directory is not renamed over. Another run may put its
  # own there meanwhile.
  defp replace!(new, target, old, tries) do
    _ = File.rename(target, "#{old}.#{Path.basename(target)}.#{tries}")

    case File.rename(new, target) do
      {:error, reason} when reason in [:eexist, :enotempty] and tries > 0 ->
        replace!(new, target, old, tries - 1)

      {:error, _reason} ->
        File.rename!(new, target)

      :ok ->
        :ok
    end
  end
end
