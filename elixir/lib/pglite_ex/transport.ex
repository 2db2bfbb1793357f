defmodule PgliteEx.Transport do
  @moduledoc false
  # The socket of a client, plain or encrypted, for the process that controls it.
  #
  # The client of a server with `ssl:` may ask for TLS with its first packet (`SSLRequest`), or begin with TLS at
  # once and name the protocol (ALPN). Whatever else the client begins with is passed on as it is.

  @type t :: {:tcp, :gen_tcp.socket()} | {:ssl, :ssl.sslsocket()}

  # PostgreSQL, `src/include/libpq/pqcomm.h`: `NEGOTIATE_SSL_CODE`, `PG_ALPN_PROTOCOL`.
  @ssl_request <<8::32, 1234::16, 5679::16>>
  @protocol "postgresql"
  # The first byte of a TLS handshake, which no startup packet has (`ProcessSSLStartup` in
  # `src/backend/tcop/backend_startup.c`).
  @tls_handshake 0x16
  @defaults [
    versions: [:"tlsv1.3", :"tlsv1.2"],
    alpn_preferred_protocols: [@protocol]
  ]

  @doc """
  What to do after the first bytes of a client that may ask for TLS.

      iex> PgliteEx.Transport.first(<<8::32, 1234::16, 5679::16>>)
      :encrypt

      iex> PgliteEx.Transport.first(<<0x16, 3, 1>>)
      :encrypted

      iex> PgliteEx.Transport.first(<<8::32, 1234::16>>)
      :more

      iex> PgliteEx.Transport.first(<<8::32, 1234::16, 5680::16>>)
      :plain

  Bytes that follow the request before its answer are not encrypted, and may be somebody else's.

      iex> PgliteEx.Transport.first(<<8::32, 1234::16, 5679::16, 0>>)
      :error
  """
  @spec first(binary) :: :encrypt | :encrypted | :more | :plain | :error
  def first(<<@tls_handshake, _more::binary>>), do: :encrypted
  def first(@ssl_request), do: :encrypt
  def first(<<@ssl_request, _more::binary>>), do: :error

  def first(bytes) do
    if String.starts_with?(@ssl_request, bytes), do: :more, else: :plain
  end

  @doc """
  Accepts a client's request for TLS, with the options of the server's `ssl:`; the handshake may take `timeout`
  milliseconds. The socket is passive.
  """
  @spec encrypt(t, keyword, timeout) :: {:ok, t} | {:error, term}
  def encrypt({:tcp, socket}, options, timeout) do
    with :ok <- :gen_tcp.send(socket, "S"), do: handshake(socket, options, timeout)
  end

  @doc "Goes on with a client that has begun with TLS at once, with the bytes `first`."
  @spec go_on_encrypted(t, binary, keyword, timeout) :: {:ok, t} | {:error, term}
  def go_on_encrypted({:tcp, socket}, first, options, timeout) do
    # `:ssl` reads them again.
    with :ok <- :gen_tcp.unrecv(socket, first),
         {:ok, {:ssl, encrypted} = transport} <- handshake(socket, options, timeout) do
      case :ssl.negotiated_protocol(encrypted) do
        {:ok, @protocol} ->
          {:ok, transport}

        _another_or_none ->
          close(transport)
          {:error, :protocol_not_negotiated}
      end
    end
  end

  defp handshake(socket, options, timeout) do
    with {:ok, socket} <- :ssl.handshake(socket, complete(options), timeout),
         do: {:ok, {:ssl, socket}}
  end

  # As PostgreSQL, every connection has a handshake of its own. TLS 1.3 alone does not know the option.
  defp complete(options) do
    options = Keyword.merge(@defaults, options)

    if :"tlsv1.2" in options[:versions],
      do: Keyword.put_new(options, :reuse_sessions, false),
      else: options
  end

  @doc """
  What the program has to know of the encryption, as options of the frame that opens the connection; `shown` is the
  certificate (DER) that the client has been shown, if it is known.
  """
  @spec frame_options(t, shown :: nil | binary) :: PgliteEx.Frame.options()
  def frame_options({:tcp, _socket}, _shown), do: []

  def frame_options({:ssl, socket}, shown) do
    server = for shown <- List.wrap(shown), do: {"server_certificate", Base.encode64(shown)}

    # One that was not verified ends the handshake.
    client =
      case :ssl.peercert(socket) do
        {:ok, certificate} -> [{"certificate", common_name(certificate)}]
        {:error, _no_certificate} -> []
      end

    [{"encrypted", "true"} | server ++ client]
  end

  # The common name of the subject, or an empty string.
  defp common_name(certificate) do
    certificate = :public_key.pkix_decode_cert(certificate, :otp)
    {:rdnSequence, names} = certificate |> elem(1) |> elem(6)

    Enum.find_value(List.flatten(names), "", fn
      {:AttributeTypeAndValue, {2, 5, 4, 3}, name} -> text(name)
      _another -> nil
    end)
  end

  defp text({_kind, name}), do: text(name)

  defp text(name) do
    name = to_string(name)
    if String.valid?(name) and not (name =~ <<0>>), do: name, else: ""
  end

  @doc "The event that a message of the mailbox is for this socket."
  @spec handle(t, term) :: {:data, binary} | :gone | :unknown
  def handle({:tcp, socket}, {:tcp, socket, bytes}), do: {:data, bytes}
  def handle({:tcp, socket}, {:tcp_closed, socket}), do: :gone
  def handle({:tcp, socket}, {:tcp_error, socket, _posix}), do: :gone
  def handle({:ssl, socket}, {:ssl, socket, bytes}), do: {:data, bytes}
  def handle({:ssl, socket}, {:ssl_closed, socket}), do: :gone
  def handle({:ssl, socket}, {:ssl_error, socket, _reason}), do: :gone
  def handle(_none_or_another, _message), do: :unknown

  @spec send(t, iodata) :: :ok | {:error, term}
  def send({:tcp, socket}, bytes), do: :gen_tcp.send(socket, bytes)
  def send({:ssl, socket}, bytes), do: :ssl.send(socket, bytes)

  @doc "Asks for the next bytes."
  @spec activate(t) :: :ok | {:error, term}
  def activate(transport), do: set(transport, active: :once)

  @spec set(t, keyword) :: :ok | {:error, term}
  def set({:tcp, socket}, options), do: :inet.setopts(socket, options)
  def set({:ssl, socket}, options), do: :ssl.setopts(socket, options)

  @doc "Makes `pid` the process that controls the socket, which the calling one does."
  @spec give(t, pid) :: :ok | {:error, term}
  def give({:tcp, socket}, pid), do: :gen_tcp.controlling_process(socket, pid)
  def give({:ssl, socket}, pid), do: :ssl.controlling_process(socket, pid)

  @spec close(t) :: :ok
  def close({:tcp, socket}), do: :gen_tcp.close(socket)

  def close({:ssl, socket}) do
    _ = :ssl.close(socket)
    :ok
  end

  @spec peer(t) :: {:ok, term} | {:error, term}
  def peer({:tcp, socket}), do: :inet.peername(socket)
  def peer({:ssl, socket}), do: :ssl.peername(socket)

  @spec local(t) :: {:ok, term} | {:error, term}
  def local({:tcp, socket}), do: :inet.sockname(socket)
  def local({:ssl, socket}), do: :ssl.sockname(socket)
end
