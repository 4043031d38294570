//! A pooler between Croft and the database, which hands connections out by the transaction.

use croft_front::store::postgres::Postgres;
use croft_front::{Error, migrate};
use croft_serve::Tasks;
use secrecy::SecretString;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Answers as `PgBouncer` does where it was not told to ignore the parameter. The messages are those of
/// <https://www.postgresql.org/docs/15/protocol-message-formats.html>.
async fn refuse(mut client: TcpStream) -> std::io::Result<()> {
    const TLS_WANTED: u32 = 80_877_103;
    loop {
        let length = client.read_u32().await? as usize;
        let mut rest = vec![0; length - 4];
        client.read_exact(&mut rest).await?;
        if rest[..4] == TLS_WANTED.to_be_bytes() {
            client.write_all(b"N").await?;
            continue;
        }
        let told = String::from_utf8_lossy(&rest).into_owned();
        assert!(told.contains("options"), "{told}");
        let said = b"SFATAL\0VFATAL\0C08P01\0Munsupported startup parameter in options: statement_timeout\0\0";
        client.write_u8(b'E').await?;
        client.write_u32(u32::try_from(said.len() + 4).unwrap()).await?;
        client.write_all(said).await?;
        return client.shutdown().await;
    }
}

/// The front was never ready, with a word of a database that is away, and `migrate` went through it, with locks that stayed at whichever
/// connection it had then.
#[tokio::test]
async fn what_a_pooler_refuses_is_named_by_front_and_migrate() {
    let tasks = Tasks::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("postgres://croft:secret@{}/croft", listener.local_addr().unwrap());
    drop(tasks.spawn("pooler", async move {
        while let Ok((client, _)) = listener.accept().await {
            refuse(client).await.unwrap();
        }
    }));
    let refused = Postgres::connect(&url, 1).await.unwrap_err();
    let Error::Unavailable { source: Some(source), .. } = refused else { panic!("{refused:?}") };
    let migrated = migrate::run(&SecretString::from(url), "croft_front").await.unwrap_err();
    for told in [format!("{source:#}"), format!("{migrated:#}")] {
        assert!(told.contains("directly, or through a pooler that keeps a session's connection"), "{told}");
        assert!(told.contains("unsupported startup parameter"), "{told}");
        assert!(!told.contains("secret"), "{told}");
    }
}
