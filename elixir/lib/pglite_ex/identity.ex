defmodule PgliteEx.Identity do
  @moduledoc false
  # What a server with `ssl:` shows to clients: its certificate and key, and the authorities of clients' certificates.
  #
  # The files are read when the server starts and when it is asked to read them again. `:ssl` gets what was read, and no
  # paths: it would read them again by itself, from a cache of its own, and nobody would know which certificate a client
  # has been shown, which a password may be bound to.

  use GenServer

  require Logger

  import Bitwise

  alias PgliteEx.{Error, Options, Parts}

  @files [:certfile, :keyfile, :password, :cacertfile]
  @private_keys [:RSAPrivateKey, :DSAPrivateKey, :ECPrivateKey, :PrivateKeyInfo]
  # RFC 8410: Ed25519 and Ed448, which sign without a digest of their own.
  @edwards [{1, 3, 101, 112}, {1, 3, 101, 113}]

  @typedoc """
  Options of `:ssl`, in a function because they have a private key in them, and the certificate (DER) that every client
  is shown. That is `nil` if it depends on the client.
  """
  @type t :: %{options: (() -> keyword), certificate: nil | binary}

  @doc "Reads the files, as a part of the server with this registry; nothing is started for one without `ssl:`."
  @spec start_link({Registry.registry(), Options.t()}) :: GenServer.on_start()
  def start_link({_registry, %Options{ssl: nil}}), do: :ignore

  def start_link({registry, %Options{} = options}),
    do: GenServer.start_link(__MODULE__, options, name: Parts.name(registry, __MODULE__))

  @doc "What a new client of the server with this registry is shown; `:error` when the server has ended."
  @spec current(Registry.registry() | nil) :: {:ok, t} | :error
  def current(registry) do
    with identity when is_pid(identity) <- registry && Parts.whereis(registry, __MODULE__),
         do: {:ok, GenServer.call(identity, :current)},
         else: (nil -> :error)
  catch
    :exit, _ended -> :error
  end

  @doc "Reads the files again. If one cannot be used, what was read before stays in use."
  @spec reload(Registry.registry(), timeout) :: :ok | {:error, Error.t()}
  def reload(registry, timeout) do
    case Parts.whereis(registry, __MODULE__) do
      nil -> :ok
      identity -> GenServer.call(identity, :reload, timeout)
    end
  catch
    :exit, _ended_or_late ->
      message = "the files of ssl: were not read in time, or the server has ended"
      {:error, %Error{code: :unusable_certificate, message: message}}
  end

  @impl GenServer
  def init(options) do
    case read(options.ssl.()) do
      {:ok, identity} -> {:ok, {options, identity}}
      {:error, error} -> {:stop, error}
    end
  end

  @impl GenServer
  def handle_call(:current, _from, {_options, identity} = state), do: {:reply, identity, state}

  def handle_call(:reload, _from, {options, _before} = state) do
    case read(options.ssl.()) do
      {:ok, identity} ->
        {:reply, :ok, {options, identity}}

      {:error, error} ->
        text = "TLS goes on with the files from before: #{error.message}"
        Logger.warning(text, domain: [:pglite_ex], server: options.name)
        {:reply, {:error, error}, state}
    end
  end

  @doc """
  Reads the files that options of `:ssl` name. Where the client's host name chooses among certificates, `:ssl` reads them
  itself: the contents of one file would precede the paths of another host's.
  """
  @spec read(keyword) :: {:ok, t} | {:error, Error.t()}
  def read(options) do
    if options[:sni_fun] || options[:sni_hosts] do
      for {_host, given} <- [{:any, options} | options[:sni_hosts] || []],
          given <- [inherited(given, options) | given[:certs_keys] || []],
          path = keyfile(Keyword.new(given)),
          do: check_permissions(path)

      :ssl.clear_pem_cache()
      {:ok, %{options: fn -> options end, certificate: nil}}
    else
      several = Enum.map(options[:certs_keys] || [], &Map.new(own(Keyword.new(&1))))
      options = own(options)
      options = if several == [], do: options, else: Keyword.put(options, :certs_keys, several)
      {:ok, %{options: fn -> options end, certificate: certificate(options, several)}}
    end
  catch
    {:unusable, message} -> {:error, %Error{code: :unusable_certificate, message: message}}
  end

  defp certificate(options, several) do
    shown = for given <- [options | several], cert = given[:cert], do: cert |> List.wrap() |> hd()

    case shown do
      [certificate] -> certificate
      _none_or_several -> nil
    end
  end

  # The options with the contents of the files in place of their paths.
  defp own(options) do
    certfile = options[:certfile]
    keyfile = keyfile(options)
    chain = if certfile, do: certificates(certfile)
    key = if keyfile, do: private_key(keyfile, options[:password])

    if chain && key && not signs?(key, hd(chain)) do
      unusable("the private key in #{keyfile} is not that of the certificate in #{certfile}")
    end

    authorities = if options[:cacertfile], do: authorities(options[:cacertfile])
    read = [cert: chain, key: key, cacerts: authorities]
    Keyword.merge(Keyword.drop(options, @files), Enum.filter(read, &elem(&1, 1)))
  end

  # The options of a host, which may have a certificate of its own and the server's key.
  defp inherited(given, options),
    do: options |> Keyword.take([:key, :keyfile]) |> Keyword.merge(given)

  # The file that `:ssl` would read the key from.
  defp keyfile(options),
    do: options[:keyfile] || unless(options[:key], do: options[:certfile])

  # Refuses a private key that others can read, as the program does, and PostgreSQL (`check_ssl_key_file_permissions` in
  # `src/backend/libpq/be-secure-common.c`): a group may, if the file is root's.
  defp check_permissions(path) do
    case File.stat(path) do
      {:ok, %File.Stat{uid: owner, mode: mode}} ->
        allowed = if owner == 0, do: 0o740, else: 0o700
        permissions = mode &&& 0o777

        if (permissions &&& bnot(allowed)) != 0 do
          shown = permissions |> Integer.to_string(8) |> String.pad_leading(4, "0")

          unusable(
            "others can read the private key in #{path} (mode #{shown}): chmod 600 #{path}, or 640 if it is root's"
          )
        end

      {:error, posix} ->
        unusable("#{path} cannot be read: #{:file.format_error(posix)}")
    end
  end

  defp certificates(path) do
    ders = path |> ders() |> present(path)
    unless Enum.all?(ders, &readable?/1), do: unusable("a certificate in #{path} cannot be read")
    ders
  end

  # As `:ssl` does, without those that it cannot read: bundles of systems have some.
  defp authorities(path), do: path |> ders() |> Enum.filter(&readable?/1) |> present(path)

  defp ders(path), do: for({:Certificate, der, :not_encrypted} <- entries(path), do: der)

  defp present([], path), do: unusable("#{path} has no certificate (PEM)")
  defp present(ders, _path), do: ders

  defp readable?(certificate) do
    decode(certificate)
    true
  rescue
    _error -> false
  end

  defp private_key(path, password) do
    entry = Enum.find(entries(path), fn {type, _der, _cipher} -> type in @private_keys end)
    unless entry, do: unusable("#{path} has no private key (PEM)")
    check_permissions(path)

    case entry do
      {type, der, :not_encrypted} ->
        attempt(
          fn -> :public_key.der_decode(type, der) end,
          "the private key in #{path} cannot be read"
        )

        {type, der}

      encrypted ->
        decrypt = fn ->
          key = :public_key.pem_entry_decode(encrypted, to_charlist(reveal(password)))
          {elem(key, 0), :public_key.der_encode(elem(key, 0), key)}
        end

        attempt(
          decrypt,
          "the private key in #{path} cannot be read with the option password: of ssl:"
        )
    end
  end

  defp entries(path) do
    case File.read(path) do
      {:ok, text} ->
        attempt(fn -> :public_key.pem_decode(text) end, "#{path} cannot be read as PEM")

      {:error, posix} ->
        unusable("#{path} cannot be read: #{:file.format_error(posix)}")
    end
  end

  defp reveal(function) when is_function(function, 0), do: function.()
  defp reveal(password), do: password || ""

  # Whether this is the private key of the certificate.
  defp signs?({type, der}, certificate) do
    {:OTPSubjectPublicKeyInfo, {:PublicKeyAlgorithm, algorithm, parameters}, public} =
      certificate |> decode() |> elem(1) |> elem(7)

    digest = if algorithm in @edwards, do: :none, else: :sha256
    key = :public_key.der_decode(type, der)

    public =
      cond do
        algorithm in @edwards -> {public, {:namedCurve, algorithm}}
        match?({:ECPoint, _point}, public) -> {public, parameters}
        true -> public
      end

    case sign(digest, key) do
      {:ok, signature} -> :public_key.verify("text", digest, signature, public)
      # A kind of key that only `:ssl` can use.
      :error -> true
    end
  rescue
    # Keys of two kinds do not fit.
    _error -> false
  end

  defp sign(digest, key) do
    {:ok, :public_key.sign("text", digest, key)}
  rescue
    _error -> :error
  end

  defp decode(certificate), do: :public_key.pkix_decode_cert(certificate, :otp)

  # `:public_key` raises for what it cannot read; what it raises may show a part of a key.
  defp attempt(function, message) do
    function.()
  rescue
    _error -> unusable(message)
  end

  defp unusable(message), do: throw({:unusable, message})
end
