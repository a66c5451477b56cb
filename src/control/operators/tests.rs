//! Operators over real SQLite and real files.

use tempfile::TempDir;

use super::*;
use crate::clock::ManualClock;
use crate::control::store::SqliteStore;

const NOW: Timestamp = Timestamp::from_secs(1_700_000_000);

async fn open(directory: &TempDir) -> Result<Arc<Operators>, OperatorError> {
    let store = Arc::new(SqliteStore::open(directory.path(), NOW).await.unwrap());
    let file = directory.path().join("bootstrap-token");
    Operators::open(store, Arc::new(ManualClock::new(NOW)), &file).await
}

fn by() -> Intent {
    Intent::system(BOOTSTRAP, "test")
}

fn file(directory: &TempDir) -> std::path::PathBuf {
    directory.path().join("bootstrap-token")
}

#[tokio::test]
async fn the_first_start_makes_one_operator_and_writes_its_token_once() {
    let directory = TempDir::new().unwrap();
    let operators = open(&directory).await.unwrap();
    let token = std::fs::read_to_string(file(&directory)).unwrap();
    assert_eq!(std::fs::metadata(file(&directory)).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(operators.authenticate(token.trim()).map(|p| p.name).as_deref(), Some(BOOTSTRAP));
    for wrong in [
        "",
        "ptc_op_",
        &token.trim().to_lowercase(),
        token.trim().strip_prefix('p').unwrap(),
        &format!("{}x", token.trim()),
    ] {
        assert_eq!(operators.authenticate(wrong), None, "{wrong}");
    }
    drop(operators);
    // Later starts leave the file alone, also when it has been taken away.
    std::fs::remove_file(file(&directory)).unwrap();
    let operators = open(&directory).await.unwrap();
    assert!(!file(&directory).exists());
    assert_eq!(operators.authenticate(token.trim()).map(|p| p.name).as_deref(), Some(BOOTSTRAP));
}

#[tokio::test]
async fn a_token_left_by_a_start_that_crashed_is_used_unless_others_could_read_it() {
    let directory = TempDir::new().unwrap();
    let token = bootstrap_token(&file(&directory)).unwrap();
    std::fs::set_permissions(file(&directory), std::fs::Permissions::from_mode(0o640)).unwrap();
    let error = open(&directory).await.unwrap_err();
    assert!(error.to_string().contains("bootstrap-token"), "{error}");
    std::fs::set_permissions(file(&directory), std::fs::Permissions::from_mode(0o600)).unwrap();
    let operators = open(&directory).await.unwrap();
    assert_eq!(operators.authenticate(&token).map(|p| p.name).as_deref(), Some(BOOTSTRAP));

    let directory = TempDir::new().unwrap();
    std::fs::write(file(&directory), "ptc_op_short").unwrap();
    std::fs::set_permissions(file(&directory), std::fs::Permissions::from_mode(0o600)).unwrap();
    let error = open(&directory).await.unwrap_err();
    assert!(error.to_string().contains("holds no token"), "{error}");
}

#[tokio::test]
async fn revoked_operators_are_nobody_and_their_names_stay_taken() {
    let directory = TempDir::new().unwrap();
    let operators = open(&directory).await.unwrap();
    assert!(matches!(operators.revoke(BOOTSTRAP, &by()).await, Err(OperatorError::Last(_))));
    let (carol, token) = operators.create("carol", OperatorKind::Person, &by()).await.unwrap();
    assert_eq!((&*carol.created_by, carol.created_at), (BOOTSTRAP, NOW));
    assert_eq!(operators.authenticate(&token).map(|p| p.name).as_deref(), Some("carol"));
    operators.revoke("carol", &by()).await.unwrap();
    assert_eq!(operators.authenticate(&token), None, "at once");
    assert!(matches!(operators.revoke("carol", &by()).await, Err(OperatorError::Unknown(_))));
    assert!(matches!(operators.create("carol", OperatorKind::Person, &by()).await, Err(OperatorError::Taken(_))));
    for bad in ["", SYSTEM, "Carol", "a b", "-x"] {
        assert!(
            matches!(operators.create(bad, OperatorKind::Person, &by()).await, Err(OperatorError::Name(_))),
            "{bad}"
        );
    }
    drop(operators);
    let operators = open(&directory).await.unwrap();
    assert_eq!(operators.authenticate(&token), None, "also after a restart");
    let listed = operators.list().await.unwrap();
    assert_eq!(
        listed.iter().map(|o| (&*o.name, o.revoked_at)).collect::<Vec<_>>(),
        [(BOOTSTRAP, None), ("carol", Some(NOW))]
    );
}
