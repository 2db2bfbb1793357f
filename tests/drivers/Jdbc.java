import java.sql.DriverManager;
import java.sql.SQLException;
import java.util.Properties;

/**
 * Connects with PostgreSQL's JDBC driver over verified TLS and prints what {@code select 1} returns, or why that failed.
 * Arguments: the host, the port, the file of the certificate authority, and the password.
 */
class Jdbc {
  public static void main(String[] arguments) {
    var properties = new Properties();
    properties.setProperty("user", "postgres");
    properties.setProperty("sslmode", "verify-full");
    properties.setProperty("sslrootcert", arguments[2]);
    properties.setProperty("password", arguments[3]);
    var url = "jdbc:postgresql://" + arguments[0] + ":" + arguments[1] + "/postgres";
    try (var connection = DriverManager.getConnection(url, properties);
        var statement = connection.prepareStatement("select ?::int as one")) {
      statement.setInt(1, 1);
      try (var rows = statement.executeQuery()) {
        rows.next();
        System.out.println(rows.getInt("one"));
      }
    } catch (SQLException error) {
      System.out.println(error.getSQLState() + " " + error.getMessage().lines().findFirst().orElse(""));
    }
  }
}
