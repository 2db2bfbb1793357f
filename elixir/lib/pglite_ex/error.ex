defmodule PgliteEx.Error do
  @moduledoc """
  What went wrong between the VM and `pglite-port`.

    * `:code` – the SQLSTATE where the program gave one (`"53300"`), otherwise an atom such as
      `:executable_not_found` or `:program_exited`;
    * `:message` – what happened and what to do next.
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
