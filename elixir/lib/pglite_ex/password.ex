defmodule PgliteEx.Password do
  @moduledoc false
  # The password of a server's role.
  #
  # It is kept as a function, so that no state, no child specification and no error that is inspected
  # shows it, and is asked for where it is used: for connection options, and for the program.
  #
  # The program reads it from a descriptor that it inherits. The file behind it is in a directory of its
  # own that only the user can enter, in memory where there is `/dev/shm`, and is removed before the program
  # is executed.

  alias PgliteEx.Error

  @type t :: (() -> String.t())

  # Where the program finds it (proc(5)).
  @descriptor 3
  @file_name "password"
  # PostgreSQL's default (`SCRAM_SHA_256_DEFAULT_ITERATIONS`), and the lengths of salt and keys.
  @iterations 4_096
  @salt_length 16
  @key_length 32

  @doc """
  The value of an option as a function; `:error` if it can be none.

      iex> {:ok, password} = PgliteEx.Password.hide("secret")
      iex> {inspect(password) =~ "secret", password.()}
      {false, "secret"}

      iex> PgliteEx.Password.hide("")
      :error
  """
  @spec hide(term) :: {:ok, t} | :error
  def hide(password) when is_function(password, 0), do: {:ok, password}

  def hide({:system, variable}) when is_binary(variable) do
    {:ok, fn -> System.get_env(variable) || raise("the variable #{variable} is not set") end}
  end

  def hide(password) when is_binary(password),
    do: if(valid?(password), do: {:ok, fn -> password end}, else: :error)

  def hide(_other), do: :error

  @doc "The password of a server with these options; `nil` if it has none."
  @spec reveal(PgliteEx.Options.t()) :: String.t() | nil
  def reveal(%{password: nil}), do: nil

  def reveal(%{password: password}) do
    password = password.()
    # The value itself is in no message.
    valid?(password) ||
      raise "the password is not a string, is empty, or has a line feed or a NUL"

    password
  end

  @doc "The same, or an error that says why there is none."
  @spec fetch(PgliteEx.Options.t()) :: {:ok, String.t() | nil} | {:error, Error.t()}
  def fetch(options) do
    {:ok, reveal(options)}
  rescue
    error ->
      message = "the password of the server cannot be had: #{Exception.message(error)}"
      {:error, %Error{code: :no_password, message: message}}
  end

  @doc """
  A text without the password of a server with these options, should it be in there: as it is, as `inspect/1` shows it,
  or as it is in a URL.

      iex> options = PgliteEx.Options.new!(password: ~S(a "b"))
      iex> PgliteEx.Password.redact(~S([password: "a \\"b\\""], a%20%22b%22, a "b"), options)
      ~S([password: "…"], …, …)
  """
  @spec redact(String.t(), PgliteEx.Options.t()) :: String.t()
  def redact(text, options) do
    case fetch(options) do
      {:ok, password} when password != nil -> String.replace(text, forms(password), "…")
      _none -> text
    end
  end

  defp forms(password) do
    inspected = password |> inspect(printable_limit: :infinity) |> String.slice(1..-2//1)
    [password, inspected, URI.encode(password, &URI.char_unreserved?/1)]
  end

  @doc "Writes a password into a file in a new directory, which only this user can enter."
  @spec write!(String.t()) :: Path.t()
  def write!(password) do
    name = "pglite_ex-" <> Base.encode16(:crypto.strong_rand_bytes(16), case: :lower)

    directory =
      Path.join(if(File.dir?("/dev/shm"), do: "/dev/shm", else: System.tmp_dir!()), name)

    File.mkdir!(directory)
    File.chmod!(directory, 0o700)
    path = Path.join(directory, @file_name)
    File.write!(path, [password, ?\n])
    # A file of passwords for several servers is not used if others can read it, wherever it is.
    File.chmod!(path, 0o600)
    directory
  end

  @doc "The command of a shell that opens the file in the directory of the variable, and removes both."
  @spec shell(String.t()) :: String.t()
  def shell(variable) do
    ~s(exec #{@descriptor}<"$#{variable}/#{@file_name}"; rm -r "$#{variable}"; unset #{variable}; )
  end

  @doc "Where a program that the shell has started finds the password."
  @spec path() :: Path.t()
  def path, do: "/proc/self/fd/#{@descriptor}"

  @doc """
  The password as PostgreSQL stores it, so that no SQL has the password itself in it
  (`scram_build_secret` in PostgreSQL's `src/common/scram-common.c`).
  """
  @spec verifier(String.t()) :: String.t()
  def verifier(password) do
    salt = :crypto.strong_rand_bytes(@salt_length)
    salted = :crypto.pbkdf2_hmac(:sha256, prepare(password), salt, @iterations, @key_length)
    stored_key = :crypto.hash(:sha256, hmac(salted, "Client Key"))
    server_key = hmac(salted, "Server Key")
    [salt, stored_key, server_key] = Enum.map([salt, stored_key, server_key], &Base.encode64/1)
    "SCRAM-SHA-256$#{@iterations}:#{salt}$#{stored_key}:#{server_key}"
  end

  defp hmac(key, text), do: :crypto.mac(:hmac, :sha256, key, text)

  # SASLprep (RFC 4013) as far as it changes texts: spaces, characters that are left out, NFKC.
  defp prepare(password) do
    password
    |> String.replace(~r/[\x{A0}\x{1680}\x{2000}-\x{200B}\x{202F}\x{205F}\x{3000}]/u, " ")
    |> String.replace(
      ~r/[\x{AD}\x{34F}\x{1806}\x{180B}-\x{180D}\x{200C}\x{200D}\x{2060}\x{FE00}-\x{FE0F}\x{FEFF}]/u,
      ""
    )
    |> String.normalize(:nfkc)
  end

  defp valid?(password) do
    is_binary(password) and password != "" and String.valid?(password) and
      not (password =~ ~r/[\0\n\r]/)
  end
end
