defmodule PgliteEx.Archive do
  @moduledoc false
  # Puts the program and PGlite's files into `priv/` from an archive that `make dist` has made, so
  # that neither Rust nor Node.js is needed. Used by Mix tasks.
  #
  # The archive is executed sooner or later, so nothing of it is unpacked before its SHA-256 is that
  # of the configuration, of the list in the package (`archives.sha256`, one line for each archive of
  # this version), or of the file with `.sha256` after its name in the same place. The last one tells
  # of damage only, so it does not do for a place that anybody on the way can write to: `http:`.

  alias PgliteEx.{Download, Executable, Launchers}

  @list Path.expand("../../archives.sha256", __DIR__)
  @version Mix.Project.config()[:version]
  # In priv/: the SHA-256 of the archive that it was filled from, and where that was.
  @record "archive.sha256"

  @typedoc "Where an archive is, a path or a URL, and its SHA-256 if that is configured."
  @type named :: {String.t(), nil | String.t()}

  @doc """
  The archive that the environment names (`PGLITE_EX_ARCHIVE`, `PGLITE_EX_ARCHIVE_SHA256`), or else
  the configuration (`config :pglite_ex, archive: …, archive_sha256: …`); `nil` if none is named.
  """
  @spec named() :: nil | named()
  def named do
    case System.get_env("PGLITE_EX_ARCHIVE", "") do
      "" ->
        with place when place != nil <- Application.get_env(:pglite_ex, :archive),
             do: {fill_in(place), Application.get_env(:pglite_ex, :archive_sha256)}

      place ->
        {fill_in(place), System.get_env("PGLITE_EX_ARCHIVE_SHA256")}
    end
  end

  @doc """
  Fills in what an archive's name may leave open: `{version}` of this library and `{target}`, this
  machine's, as Rust writes it. A path becomes an absolute one.

      iex> PgliteEx.Archive.fill_in("/a-{target}.tar.gz", "x86_64-pc-linux-gnu")
      "/a-x86_64-unknown-linux-gnu.tar.gz"
      iex> PgliteEx.Archive.fill_in("https://example.com/{target}", "aarch64-apple-darwin23.1.0")
      "https://example.com/aarch64-apple-darwin"
  """
  @spec fill_in(String.t(), String.t()) :: String.t()
  def fill_in(place, machine \\ List.to_string(:erlang.system_info(:system_architecture))) do
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
         [sha256, ^place] <- record |> String.trim_trailing("\n") |> String.split("  ", parts: 2) do
      case checksum_at_hand(place, given) do
        {:ok, known} -> known == sha256
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
    beside = Path.join(priv, ".archive.#{System.pid()}")

    try do
      with :ok <- make(beside),
           {:ok, sha256} <- checksum(place, given, beside),
           {:ok, file} <- fetch(place, beside),
           :ok <- check(file, sha256, place),
           {:ok, root} <- unpack(file, beside, place),
           {:ok, version} <- try_program(root, place),
           :ok <- move(root, priv, "#{sha256}  #{place}\n"),
           do: {:ok, version}
    after
      File.rm_rf(beside)
    end
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

          with :ok <- Download.to_file(place <> ".sha256", file),
               do: file |> File.read!() |> parse(place <> ".sha256", place)

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

  # Without a network.
  defp checksum_at_hand(place, given) do
    name = place |> URI.parse() |> Map.get(:path) |> Kernel.||("") |> Path.basename()

    with :none <- given(given),
         :none <- listed(name),
         do: if(url?(place), do: :none, else: beside(place))
  end

  defp given(none) when none in [nil, ""], do: :none
  defp given(text), do: parse(text, "the SHA-256 of the configuration", text)

  defp listed(name) do
    with {:ok, list} <- File.read(@list),
         line when line != nil <-
           list |> String.split("\n") |> Enum.find(&String.ends_with?(&1, " " <> name)) do
      parse(line, @list, name)
    else
      _not_listed -> :none
    end
  end

  defp beside(place) do
    case File.read(place <> ".sha256") do
      {:ok, text} -> parse(text, place <> ".sha256", place)
      {:error, _none} -> :none
    end
  end

  # As sha256sum writes it: the name of the file comes after it.
  defp parse(text, where, place) do
    case Regex.run(~r/\A\s*([0-9a-fA-F]{64})(\s|\z)/, text) do
      [_all, sha256, _space] ->
        {:ok, String.downcase(sha256)}

      nil ->
        {:error,
         "#{where} is #{inspect(String.slice(text, 0, 80))}, which is no SHA-256 of " <>
           "64 hexadecimal digits; nothing of #{place} was unpacked"}
    end
  end

  defp fetch(place, beside) do
    cond do
      url?(place) ->
        file = Path.join(beside, "archive.tar.gz")
        with :ok <- Download.to_file(place, file), do: {:ok, file}

      File.regular?(place) ->
        {:ok, place}

      true ->
        {:error, "the archive #{place} is no file"}
    end
  end

  defp check(file, expected, place) do
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
         "#{expected}; nothing was unpacked"}
    end
  end

  defp unpack(file, beside, place) do
    into = Path.join(beside, "unpacked")
    options = [:compressed, cwd: to_charlist(into)]

    with :ok <- File.mkdir_p(into),
         :ok <- :erl_tar.extract(to_charlist(file), options),
         [root] <- Path.wildcard(Path.join(into, "*/pglite-port")),
         root = Path.dirname(root),
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

    if status == 0,
      do: {:ok, String.trim(output)},
      else: cannot_run(place, "it ends with status #{status}: #{String.trim(output)}")
  rescue
    error in ErlangError -> cannot_run(place, inspect(error.original))
  end

  defp cannot_run(place, why) do
    {:error,
     "the program in #{place} does not run on this machine " <>
       "(#{:erlang.system_info(:system_architecture)}): #{why}"}
  end

  # The program comes last, because what has one is taken to be complete.
  defp move(root, priv, record) do
    program = Path.basename(Executable.installed_path())
    rest = root |> File.ls!() |> List.delete(program)

    for name <- rest ++ [program] do
      target = Path.join(priv, name)
      # A program that runs is renamed over; a directory has to be away first.
      if File.dir?(target), do: File.rm_rf!(target)
      File.rename!(Path.join(root, name), target)
    end

    File.write!(Path.join(priv, @record), record)
    Launchers.install!(Path.join(priv, "bin"))
  rescue
    error in [File.Error, File.RenameError] ->
      {:error, "the archive cannot be moved into #{priv}: #{Exception.message(error)}"}
  end
end
