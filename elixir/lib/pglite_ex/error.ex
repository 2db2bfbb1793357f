defmodule PgliteEx.Error do
  @moduledoc """
  What went wrong between the VM and `pglite-port`.

    * `:code` – a SQLSTATE as a string, or an atom where SQL has no word for it;
    * `:message` – what happened and what to do next.

  A SQLSTATE is the program's own (`"53300"`, too many connections), or one of two that this library
  gives: `"57P01"` for what cannot be done because the program has gone, whether it is a connection or
  a request, and `"08003"` for what is asked of a connection that is closed.

  The atoms:

    * `:executable_not_found` – there is no program to start;
    * `:program_exited` – the program ended, as the process that runs it says in its exit reason, with
      the exit status and the last lines on standard error;
    * `:protocol_violation` – the program sent what it must not send, or speaks another version;
    * `:timeout` – it did not answer in time;
    * a POSIX code, such as `:eaddrinuse` – the system refused a socket or a file.
  """

  @type t :: %__MODULE__{code: String.t() | atom, message: String.t()}

  defexception [:code, :message]

  @doc """
  The error of a reason that the program, or `PgliteEx.Channel`, gave as options.

      iex> PgliteEx.Error.from_reason(%{"code" => "53300", "message" => "too many clients"})
      %PgliteEx.Error{code: "53300", message: "too many clients"}
  """
  @spec from_reason(%{String.t() => String.t()}) :: t
  def from_reason(%{"code" => code, "message" => message}),
    do: %__MODULE__{code: code, message: message}
end
